"""The retail tools answer and write what the official implementation answers and writes."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from envs.domain import load_domain
from envs.types import Action

RECORDED = Path(__file__).parents[3] / "shared" / "conformance" / "retail.jsonl.gz"
FIXTURE = Path(__file__).parent / "fixtures" / "retail_hashes.json"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_gold_trajectories_give_the_recorded_results_and_databases_on_the_packaged_data(packaged):
    domain = load_domain("retail", packaged)
    tasks = {task.id: task for task in domain.tasks("base")}
    recorded = json.loads(FIXTURE.read_text())
    assert len(recorded) > 60
    for line in recorded:
        toolkit = domain.new_toolkit()
        results = [toolkit.use(action) for action in tasks[line["task_id"]].gold_actions]
        assert [sha256(result.content) for result in results] == line["results_sha256"], line["task_id"]
        assert [result.error for result in results] == line["errors"]
        assert toolkit.db_hash() == line["final_db_hash"]


@pytest.mark.skipif(not RECORDED.is_file(), reason="the official recordings are not in ../shared")
def test_every_official_recording_is_reproduced(retail):
    base = retail.new_toolkit()
    unchanged = base.db_hash()
    with gzip.open(RECORDED, "rt") as lines:
        for line in map(json.loads, lines):
            where = (line["task_id"], line["kind"])
            toolkit = retail.new_toolkit()
            for call in line["calls"]:
                result = toolkit.use(Action.from_json(call))
                assert sha256(result.content) == call["result_sha256"], (where, call["name"], result)
                assert result.error == call["error"]
                if call.get("db_hash"):
                    assert toolkit.db_hash() == call["db_hash"], (where, call["name"])
            if line["final_db_hash"]:
                assert toolkit.db_hash() == line["final_db_hash"], where
                assert toolkit.same_state(base) is (line["final_db_hash"] == unchanged), where
