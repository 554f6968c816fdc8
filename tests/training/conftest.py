"""What the tests of training share."""

from pathlib import Path

import pytest

from training.compose import load
from training.run import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(load(["+experiment=smoke", f"output_dir={tmp_path}"]))
