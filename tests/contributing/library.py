"""The test of CONTRIBUTING.md's domain. Run by tests/test_contributing.py, beside the files that the recipe makes."""

import json
from pathlib import Path

from envs.data import DataSource
from envs.domain import load_domain
from envs.types import Action


def test_lending_changes_only_the_book(tmp_path: Path):
    folder = tmp_path / "domains" / "library"
    folder.mkdir(parents=True)
    (folder / "db.json").write_text(json.dumps({"books": {"b1": {"title": "Emma"}, "b2": {"title": "Ulysses"}}}))
    (folder / "policy.md").write_text("Lend to members.")
    library = load_domain("library", DataSource(tmp_path, source="library", version="1"))
    tools, untouched = library.new_toolkit(), library.new_toolkit()
    found = tools.use(Action("find_book", {"title": "Emma"}))
    assert found.content == "b1" and tools.same_state(untouched)
    assert not tools.use(Action("lend_book", {"book_id": "b1", "member": "Ann"})).error
    assert tools.changes() == {"books": {"b1": {"title": "Emma", "borrower": "Ann"}}}
    assert library.write_tools == {"lend_book"}
