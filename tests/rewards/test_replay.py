"""The replay command: the official implementation's own answers, hash by hash, and what it makes of files that are not right."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from rewards.replay import main

SHARED = Path(__file__).parents[3] / "shared"
CONFORMANCE, OFFICIAL = SHARED / "conformance", SHARED / "tau2"
SOURCE = ["--data-dir", str(OFFICIAL)] if OFFICIAL.is_dir() else []
LINE = {
    "task_id": "create_task_1",
    "kind": "gold",
    "calls": [
        {"requestor": "assistant", "name": "create_task", "arguments": {"user_id": "user_1", "title": "Important Meeting"}}
    ],
    "say": "Done.",
    "termination_reason": "user_stop",
}


@pytest.fixture
def replay(tmp_path):
    """Replay these lines on the mock domain; gives the exit status and what was written."""

    def replay(content: bytes | list, name: str = "recorded.jsonl") -> tuple[int, list[dict]]:
        if isinstance(content, list):
            content = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in content)
        (tmp_path / name).write_bytes(content)
        out = tmp_path / "out.jsonl"
        status = main(["--domain", "mock", *SOURCE, "--trajectories", str(tmp_path / name), "--out", str(out)])
        return status, [json.loads(line) for line in out.read_text().splitlines()]

    return replay


def expected_of(row: dict) -> dict:
    """What a recording says that we must find; fields that were not computed are left out."""
    hashes = {"final_db_hash": "db_hash", "final_user_db_hash": "user_db_hash"}
    for name in ("evaluator_db_hash", "evaluator_user_db_hash", "gold_db_hash", "gold_user_db_hash"):
        hashes[name] = name
    return {
        "task_id": row["task_id"],
        "kind": row["kind"],
        "results_sha256": [call["result_sha256"] for call in row["calls"]],
        "errors": [call["error"] for call in row["calls"]],
        "db_match": row.get("db_match"),
        "reward": row.get("reward_llm_free"),
        "stop_reason": row["termination_reason"],
        **{ours: row[theirs] for theirs, ours in hashes.items() if row.get(theirs)},
    }


def parts_of(row: dict) -> dict:
    parts = {"action": row.get("action_reward"), "communicate": row.get("communicate_reward")}
    if row.get("env_assertions_met") is not None:
        parts["env_assertion"] = float(all(row["env_assertions_met"]))
    return {name: value for name, value in parts.items() if value is not None}


@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="recorded official trajectories are not here")
@pytest.mark.parametrize("domain", ["mock", "airline", "retail", "telecom"])
def test_every_recorded_trajectory_is_reproduced_to_the_last_hash(domain, tmp_path):
    recorded, out = CONFORMANCE / f"{domain}.jsonl.gz", tmp_path / "out.jsonl"
    arguments = ["--domain", domain, "--data-dir", str(OFFICIAL), "--trajectories", str(recorded), "--out", str(out)]
    assert main(arguments) == 0
    with gzip.open(recorded, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(found) == len(rows) > 80
    differences = []
    for row, ours in zip(rows, found, strict=True):
        for key, value in expected_of(row).items():
            if ours[key] != value:
                differences.append((row["task_id"], row["kind"], key, ours[key], value))
        for part, value in parts_of(row).items():
            if ours["components"][part]["value"] != value:
                differences.append((row["task_id"], row["kind"], part, ours["components"][part], value))
    assert differences == []


def test_a_line_has_exactly_the_promised_fields(replay):
    status, (line,) = replay([LINE])
    assert status == 0
    assert list(line) == [
        "task_id",
        "kind",
        "results_sha256",
        "errors",
        "db_hash",
        "user_db_hash",
        "evaluator_db_hash",
        "evaluator_user_db_hash",
        "gold_db_hash",
        "gold_user_db_hash",
        "db_match",
        "reward",
        "components",
        "stop_reason",
    ]
    assert line["reward"] == 1.0 and line["db_match"] is True and line["errors"] == [False]
    assert line["db_hash"] == line["evaluator_db_hash"] == line["gold_db_hash"]
    assert line["components"]["db"] == {"value": 1.0, "weight": 1.0}


def test_what_the_evaluator_does_not_look_at_is_null(replay):
    status, (early, raised, free) = replay(
        [
            {**LINE, "termination_reason": "max_steps"},
            {**LINE, "task_id": "create_task_1_with_env_assertions", "calls": []},
            {**LINE, "task_id": "create_task_1_nl_eval", "calls": []},
        ]
    )
    assert status == 0
    unseen = ("evaluator_db_hash", "evaluator_user_db_hash", "gold_db_hash", "gold_user_db_hash")
    assert early["reward"] == 0.0 and early["db_match"] is None and not any(early[name] for name in unseen)
    assert raised["reward"] is None and raised["db_match"] is None and all(raised[name] for name in unseen)
    assert free["reward"] == 1.0 and free["db_match"] is True and not any(free[name] for name in unseen)


@pytest.mark.parametrize("name", ["recorded.jsonl", "recorded.gz", "recorded.xz", "recorded"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
def test_compressed_files_are_read_whatever_their_name(replay, pack, name):
    status, lines = replay(pack(json.dumps(LINE).encode() + b"\n\n" + json.dumps(LINE).encode()), name)
    assert status == 0 and len(lines) == 2


MALFORMED = [
    b"{\n",
    b"\xff\xfe\n",
    b"[1]\n",
    b"[" * 100_000 + b"\n",
    {},
    {**LINE, "task_id": "no_such_task"},
    {**LINE, "task_id": None},
    {**LINE, "calls": None},
    {**LINE, "calls": ["create_task"]},
    {**LINE, "calls": [{"name": "create_task"}]},
    {**LINE, "calls": [{"name": 3, "arguments": {}}]},
    {**LINE, "calls": [{"name": "create_task", "arguments": [], "requestor": "assistant"}]},
    {**LINE, "calls": [{"name": "create_task", "arguments": {}, "requestor": "nobody"}]},
    {**LINE, "say": 3},
    {**LINE, "termination_reason": "boredom"},
    {key: value for key, value in LINE.items() if key != "termination_reason"},
]


def test_malformed_lines_are_reported_by_number_and_the_rest_goes_on(replay, capsys):
    content = [line for bad in MALFORMED for line in (bad, LINE)]
    status, lines = replay(content)
    assert status == 1
    assert len(lines) == len(MALFORMED) and {line["reward"] for line in lines} == {1.0}
    told = capsys.readouterr().err.splitlines()
    numbers = [int(line.split("recorded.jsonl:")[1].split(":")[0]) for line in told[:-1]]
    assert numbers == [2 * n + 1 for n in range(len(MALFORMED))]
    assert told[-1] == f"{len(MALFORMED)} replayed, {len(MALFORMED)} malformed"


def test_a_file_that_breaks_off_gives_what_came_before(replay, capsys):
    many = b"".join(json.dumps({**LINE, "kind": f"{n}"}).encode() + b"\n" for n in range(2000))
    status, lines = replay(gzip.compress(many)[:-200], "recorded.gz")
    assert status == 1 and 0 < len(lines) < 2000
    assert "cannot be read from here on" in capsys.readouterr().err


def test_odd_arguments_and_words_are_no_reason_to_stop(replay):
    odd = [None, True, 1e308, -0.0, float("nan"), "\ud800", "🙂", [], {"a": {"b": [1]}}, 10**400]
    calls = [{"name": "create_task", "arguments": {"user_id": value, "title": value}} for value in odd]
    status, (line,) = replay([{**LINE, "calls": [*calls, *LINE["calls"]], "say": ""}])
    assert status == 0 and line["errors"][-1] is False and len(line["results_sha256"]) == len(odd) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--domain": "mook"}, "There is no domain 'mook'"),
        ({"--trajectories": "nowhere.jsonl"}, "There is no file nowhere.jsonl"),
        ({"--out": "nowhere/out.jsonl"}, "There is no folder nowhere"),
        ({"--data-dir": "nowhere"}, "does not exist"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(tmp_path, capsys, change, message):
    (tmp_path / "in.jsonl").write_text("")
    right = {"--domain": "mock", "--trajectories": str(tmp_path / "in.jsonl"), "--out": str(tmp_path / "out.jsonl")}
    assert main([*SOURCE, *(word for pair in {**right, **change}.items() for word in pair)]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


def test_the_recording_is_not_written_over(tmp_path, capsys):
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(LINE))
    assert main(["--domain", "mock", *SOURCE, "--trajectories", str(file), "--out", str(file)]) == 2
    assert json.loads(file.read_text()) == LINE
    assert "write to another" in capsys.readouterr().err
