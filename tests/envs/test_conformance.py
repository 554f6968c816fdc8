"""The tools of every domain answer and write what the official implementation answers and writes."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.data import DataSource, open_source
from envs.domain import DOMAINS, load_domain
from envs.toolkit import ToolKit
from envs.types import Action

SHARED = Path(__file__).parents[3] / "shared"
RECORDED = SHARED / "conformance"
FIXTURES = Path(__file__).parent / "fixtures"

#: How many gold trajectories are the same in the packaged data.
KNOWN = {"mock": 9, "retail": 69, "airline": 24, "telecom": 74}


@pytest.fixture(params=DOMAINS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def official() -> DataSource:
    if not RECORDED.is_dir():
        pytest.skip("the official recordings are not in ../shared")
    return open_source("path", SHARED / "tau2")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def recordings(name: str) -> Iterator[dict]:
    with gzip.open(RECORDED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Hashes:
    """The official hashes of a toolkit; computed again only after a change."""

    def __init__(self, toolkit: ToolKit) -> None:
        self._toolkit = toolkit
        self._at: ToolKit | None = None
        self._known: tuple[str, str | None] = ("", None)

    def now(self) -> tuple[str, str | None]:
        if self._at is None or not self._at.same_state(self._toolkit):
            self._at = self._toolkit.fork()
            self._known = (self._toolkit.db_hash(), self._toolkit.user_db_hash())
        return self._known


def test_gold_trajectories_give_the_recorded_results_and_databases_on_the_packaged_data(name, packaged):
    domain = load_domain(name, packaged)
    tasks = {task.id: task for task in domain.all_tasks}
    recorded = json.loads((FIXTURES / f"{name}_hashes.json").read_text())
    assert len(recorded) == KNOWN[name]
    for line in recorded:
        toolkit = domain.new_toolkit(tasks[line["task_id"]])
        results = [toolkit.use(action) for action in tasks[line["task_id"]].gold_actions]
        assert [sha256(result.content) for result in results] == line["results_sha256"], line["task_id"]
        assert [result.error for result in results] == line["errors"], line["task_id"]
        assert toolkit.db_hash() == line["final_db_hash"], line["task_id"]
        assert line["final_user_db_hash"] in (None, toolkit.user_db_hash()), line["task_id"]


def test_every_official_recording_is_reproduced(name, official):
    domain = load_domain(name, official)
    tasks = {task.id: task for task in domain.all_tasks}
    differences, count = [], 0
    for line in recordings(name):
        count += 1
        toolkit = domain.new_toolkit(tasks[line["task_id"]])
        start, hashes = toolkit.fork(), Hashes(toolkit)
        where = (line["task_id"], line["kind"])
        differences += _state_differences((*where, "start"), hashes, line["initial_db_hash"], line["initial_user_db_hash"])
        for number, call in enumerate(line["calls"]):
            result = toolkit.use(Action.from_json(call))
            place = (*where, f"{number}: {call['name']}")
            if (sha256(result.content), result.error) != (call["result_sha256"], call["error"]):
                differences.append((*place, result, call.get("result")))
            differences += _state_differences(place, hashes, call.get("db_hash"), call.get("user_db_hash"))
        differences += _state_differences((*where, "end"), hashes, line["final_db_hash"], line["final_user_db_hash"])
        if line["initial_db_hash"] and line["final_db_hash"]:
            unchanged = [line[f"initial_{key}"] == line[f"final_{key}"] for key in ("db_hash", "user_db_hash")]
            assert toolkit.same_state(start) is all(unchanged), where
    assert count > 50
    assert differences == []


def _state_differences(where: tuple, hashes: Hashes, db_hash: str | None, user_db_hash: str | None) -> list[tuple]:
    """Hashes that were recorded and are others here."""
    if db_hash is None and user_db_hash is None:
        return []
    ours = hashes.now()
    return [(*where, mine) for mine, theirs in zip(ours, (db_hash, user_db_hash), strict=True) if theirs not in (None, mine)]
