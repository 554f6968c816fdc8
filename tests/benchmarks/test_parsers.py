"""The parser benchmark runs, and its last line is what it promises."""

from __future__ import annotations

import json

import pytest

from benchmarks.parsers import main
from rollouts.parsers import PARSERS


def test_every_parser_is_timed_over_its_messages_of_the_corpus(capsys: pytest.CaptureFixture[str]):
    main(["--rounds", "1"])
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert list(result) == list(PARSERS) and all(name in said.err for name in PARSERS)
    for figures in result.values():
        assert list(figures) == ["messages", "mean_us", "p95_us"]
        assert all(figure > 0 for figure in figures.values())
