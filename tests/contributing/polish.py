"""The test of CONTRIBUTING.md's stage. Run by tests/test_contributing.py, beside the files that the recipe makes."""

from pathlib import Path

import pytest

from training.compose import load
from training.learner.base import Sample
from training.run import Interrupted, RunFolder, RunState, StopSignal
from training.stages.polish import run_polish


class FakeLearner:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def update(self, batch: list[Sample], loss: None, lr: float) -> dict[str, float]:
        self.rates.append(lr)
        return {"loss": 1.0}

    def save(self, folder: Path, state: dict) -> None:
        (folder / "weights").touch()


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path):
    settings = load(["polish.steps=3", "polish.lr=0.001"]).polish
    folder, learner, stop = RunFolder(tmp_path, RunState()), FakeLearner(), StopSignal()
    samples = [Sample([1, 2], [False, True]) for _ in range(8)]
    stop.raised = True
    with pytest.raises(Interrupted):
        run_polish(settings, samples, learner, folder, stop)
    assert folder.newest_checkpoint() == tmp_path / "checkpoint-polish-00001"
    stop.raised = False
    run_polish(settings, samples, learner, folder, stop)
    assert learner.rates == [0.001] * 3
