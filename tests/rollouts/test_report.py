"""The report: complete where the run is, silent where it is not, and safe to open."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rollouts.charts import smooth
from rollouts.report import write_report

SCORES = ("well_formed", "action_f1", "action_exact", "write_db_match", "noop_write_db_match", "official_reward", "reward")
HOSTILE = "<script>alert('x')</script> & \"quotes\" {braces} \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")


def block(level: float, n: int) -> dict:
    values = dict.fromkeys(SCORES, level) | {"noop_write_db_match": 0.1, "official_reward": level / 2}
    return {"n": n, **values, "ci95": {k: [max(v - 0.08, 0), min(v + 0.08, 1)] for k, v in values.items()}}


def write_run(folder: Path, *, finished: bool = True) -> Path:
    rng = random.Random(0)
    stages = {"before": 0.02, "after_sft": 0.72, "after_grpo": 0.81} if finished else {"before": 0.02}
    rows = [
        {"time_s": i, "stage": "sft", "step": i, "metrics": {"loss": 2.2 * math.exp(-i / 25) + 0.2 + rng.random() / 8}}
        for i in range(120)
    ]
    for i in range(0, 120, 20):
        rows[i]["metrics"]["heldout_loss"] = 2.2 * math.exp(-i / 25) + 0.3
    summary = {
        "version": "0.1.0",
        "data": {"source": "packaged", "version": "inspect-evals 0.26.0"},
        "model": "smollm2_135m",
        "seed": 7,
    }
    summary |= {stage: {"test": block(level * 0.6, 40), "heldout": block(level, 60)} for stage, level in stages.items()}
    if finished:
        for i in range(14):
            metrics = {"reward/mean": 0.3 + i / 50 + rng.random() / 20, "reward/std": 0.25, "batch_reward/official": 0.1 + i / 60}
            metrics |= {"kl_sampler": rng.random() / 1000, "entropy": 0.5 - i / 60, "pg_clipfrac": rng.random() / 50}
            metrics |= {
                "seconds/rollout": 9.0,
                "seconds/update": 11.0,
                "seconds/sync": 0.7,
                "seconds/reward": 0.2,
                "seconds/idle": 0.6,
                "grad_norm": float("nan"),
            }
            rows.append({"time_s": 130 + i, "stage": "grpo", "step": i, "metrics": metrics})
        summary["seconds"] = {"setup": 41.0, "sft": 300.0, "grpo": 302.0, "eval": 228.0, "total": 871.0}
        summary["tokens"] = {"sft": 412_000, "grpo": 268_000}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"time_s": 9')
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("model:\n  name: smollm2_135m\nseed: 7 # <b>bold</b>\n")
    trajectories = folder / "trajectories"
    trajectories.mkdir()
    for step, stage in enumerate(stages):
        episodes = [
            episode(f"eval/{stage}", i, kind) for i, kind in enumerate(["cancel", "cancel", "lookup", "address", "official"])
        ]
        (trajectories / f"eval-{stage}-{step}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in episodes))
    return folder


def episode(stage: str, task_id: int, kind: str) -> dict:
    call = {"name": "cancel_pending_order", "arguments": {"order_id": "#W1", "reason": HOSTILE}, "requestor": "assistant"}
    messages = [
        {"role": "assistant", "content": "Hi! How can I help you today?"},
        {"role": "user", "content": f"Please cancel my order. {HOSTILE}"},
        {"role": "assistant", "content": None, "actions": [call]},
        {"role": "tool", "content": "Error: Order not found", "action": call, "error": True},
        {"role": "assistant", "content": "<tool_call>{", "parse_failure": "unclosed <tool_call>"},
    ]
    return {
        "schema": 1,
        "task_id": f"{kind}-{task_id}",
        "kind": kind,
        "stage": stage,
        "step": 0,
        "messages": messages,
        "stop_reason": "user_stop",
        "reward": {"total": 0.5, "components": {}},
        "metrics": {"f1": 0.5, "official_reward": 0.0},
    }


class Outside(HTMLParser):
    """Collects what a browser would fetch, and the tags that must not be there."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = write_run(tmp_path_factory.mktemp("finished"))
    write_report(folder)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    return (folder / "report.html").read_text()


def test_the_page_asks_nothing_from_outside_and_runs_no_script(page):
    outside = Outside()
    outside.feed(page)
    assert all(link.startswith("data:image/png;base64,") for link in outside.links)
    assert "script" not in outside.tags
    assert "url(" not in page and "@import" not in page


def test_text_of_users_tools_and_configuration_is_escaped(page):
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<b>bold</b>" not in page and "&lt;b&gt;bold&lt;/b&gt;" in page


def test_the_table_has_every_metric_with_its_interval(page):
    assert "0.810<small>0.73 to 0.89</small>" in page
    for label in ("well-formed calls", "action exact", "of a do-nothing agent", "official reward"):
        assert label in page
    assert "14 min 31 s" in page and "412,000" in page and "Not evaluated" not in page


def test_conversations_of_different_kinds_are_shown_at_every_stage(page):
    shown = re.findall(r"<h3>(\w+) ", page)
    assert sorted(shown) == ["address", "cancel", "lookup", "official"]
    assert page.count("<summary><b>after SFT") == 4


def test_a_run_that_stopped_after_the_first_evaluation_still_gets_a_page(tmp_path):
    write_run(tmp_path, finished=False)
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Not evaluated in this run (yet): after SFT, after GRPO" in text


def test_a_stage_that_most_runs_leave_out_is_shown_where_it_was_evaluated(tmp_path, page):
    assert "after RFT" not in page
    write_run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["after_rft"] = {"heldout": block(0.77, 60)}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    rows = [{"time_s": 200, "stage": "rft", "step": i, "metrics": {"loss": 0.2}} for i in range(3)]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<th>after RFT</th>") == 2  # of both task sets
    assert "0.770<small>0.69 to 0.85</small>" in text


def test_without_a_summary_the_scores_come_from_the_metrics_that_can_be_read(tmp_path):
    row = {
        "time_s": 1.0,
        "stage": "eval/before",
        "step": 0,
        "metrics": {"heldout/n": 60, "heldout/action_f1": 0.25, "seconds": 3.0},
    }
    killed = '{"time_s": 0.5, "stage": "ev'
    (tmp_path / "metrics.jsonl").write_text(killed + json.dumps(row) + "\n" + json.dumps(row) + "\n")
    write_report(tmp_path)
    assert "0.250" in (tmp_path / "report.html").read_text()


def test_an_empty_run_folder_gets_a_page_that_says_so(tmp_path):
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "No evaluation episodes" in text and "before, after SFT, after GRPO" in text


def test_smoothing_starts_at_the_first_value_and_keeps_constants():
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([]) == []
