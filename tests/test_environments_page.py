"""docs/environments.md does what it says: its code is run as it stands, in order, and prints what the page prints."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "environments.md").read_text()
GUIDE, OWN_DOMAIN = PAGE.split("## Add your own domain\n")
BLOCK = re.compile(r"^```(\w+)\n(.+?)^```$", re.MULTILINE | re.DOTALL)
#: A file of the page: its name in a paragraph of its own, then its content.
FILE = re.compile(r"^`([\w./]+)`[^`]*:\n\n```(\w+)\n(.+?)^```$", re.MULTILINE | re.DOTALL)


def test_an_episode_by_hand_takes_ten_lines():
    _, code = BLOCK.findall(GUIDE)[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 10


def test_the_guide_s_code_prints_what_the_page_prints():
    blocks = BLOCK.findall(GUIDE)
    names: dict[str, Any] = {}
    assert [kind for kind, _ in blocks] == ["python", "text"] * (len(blocks) // 2) and len(blocks) >= 12
    for (_, code), (_, expected) in zip(blocks[::2], blocks[1::2], strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/environments.md", "exec"), names)
        assert printed.getvalue() == expected


def test_a_domain_of_ones_own_is_made_by_following_the_page(tmp_path: Path):
    files = {name: content for name, _, content in FILE.findall(OWN_DOMAIN)}
    assert {"shop/bakery.py", "play.py", "data/domains/bakery/tasks.json"} <= files.keys() and len(files) == 6
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (expected,) = [content for kind, content in BLOCK.findall(OWN_DOMAIN) if kind == "text"]
    assert run(tmp_path, "play.py") == expected
    gym = "from rewards.gym import make; print(make('shop.bakery', source='path', path='data').reset(seed=1)[1]['task_id'])"
    assert run(tmp_path, "-c", gym) == "two_ryes\n"
    assert "0 of 1 tasks" in run(tmp_path, "-m", "rewards.audit", "--domain", "shop.bakery", "--data-dir", "data")


def test_adding_a_domain_takes_a_page():
    assert len([line for line in OWN_DOMAIN.splitlines() if line.strip()]) <= 110


def test_what_the_page_names_is_there():
    for name in re.findall(r"`((?:envs|rewards|training)/[\w./]+\.(?:py|md))`", PAGE):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"python -m ([\w.]+)", PAGE):
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def run(folder: Path, *arguments: str) -> str:
    """A Python in `folder`, as one that has the project installed."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
