"""The report of a run: one HTML page without any outside request, and its charts as a picture.

>>> write_report(Path("outputs/my-run"))        # writes report.html and curves.png

Reads summary.json, metrics.jsonl, config.yaml and trajectories/*; a run that stopped half-way has fewer of them, and
the page shows what there is. What models, users and tools wrote is untrusted: everything is escaped and no script runs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rollouts.charts import DARK, LIGHT, SETS, STAGES, draw, is_number, shown
from rollouts.store import json_lines, trajectory_files

SAMPLE_TASKS = 4
#: Of the conversations that training sampled, the latest so many are shown.
SAMPLED = 12
MAX_MESSAGE_CHARS = 3000
_ROWS = {
    "n": "episodes",
    "well_formed": "well-formed calls",
    "action_f1": "action F1",
    "action_exact": "action exact",
    "write_db_match": "database match, write tasks",
    "noop_write_db_match": "… of a do-nothing agent",
    "official_reward": "official reward (LLM-free)",
    "reward": "shaped reward",
}


def write_report(run_dir: Path) -> None:
    """Write `report.html` and `curves.png` into the folder of a run."""
    run_dir = Path(run_dir)
    summary_file, config_file = run_dir / "summary.json", run_dir / "config.yaml"
    summary = json.loads(summary_file.read_text("utf-8")) if summary_file.is_file() else {}
    rows = [row for row in _json_lines(run_dir / "metrics.jsonl") if {"stage", "step", "metrics"} <= row.keys()]
    blocks = _blocks(summary, rows)
    seconds = summary.get("seconds") or {}
    light, dark = (draw(blocks, rows, seconds, theme) for theme in (LIGHT, DARK))
    (run_dir / "curves.png").write_bytes(light)
    page = _PAGE.format(
        title=escape(f"taudojo: {summary.get('model') or run_dir.name}"),
        css=_CSS,
        header=_header(run_dir.name, summary),
        notice=_notice(blocks),
        table=_table(blocks),
        light=base64.b64encode(light).decode(),
        dark=base64.b64encode(dark).decode(),
        conversations=_conversations(run_dir / "trajectories"),
        sampled=_sampled(rows),
        config=escape(config_file.read_text("utf-8")) if config_file.is_file() else "not recorded",
    )
    (run_dir / "report.html").write_text(page, "utf-8")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, but for a line that a killed run left unfinished (a resumed run may go on in it)."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _episodes(path: Path) -> Iterator[dict[str, Any]]:
    """The stored episodes of a file, but for damaged lines."""
    for _, line in json_lines(path):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _blocks(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """stage -> task set -> block: from the summary or, without intervals, from the metrics of a run that has none yet."""
    blocks: dict[str, dict[str, dict[str, Any]]] = {stage: {} for stage in STAGES}
    for row in rows:
        stage = str(row["stage"]).removeprefix("eval/")
        for name, value in row["metrics"].items():
            task_set, _, metric = name.partition("/")
            if stage in blocks and task_set in SETS and metric:
                blocks[stage].setdefault(task_set, {})[metric] = value
    for stage in STAGES:
        blocks[stage].update({k: v for k, v in (summary.get(stage) or {}).items() if k in SETS and v})
    return blocks


def _header(run: str, summary: Mapping[str, Any]) -> str:
    data, seconds, tokens = (summary.get(key) or {} for key in ("data", "seconds", "tokens"))
    source, version = str(data.get("source") or ""), str(data.get("version") or "")
    facts = {
        "model": summary.get("model"),
        "data": version if source in version else f"{source}, {version}",
        "version": summary.get("version"),
        "seed": summary.get("seed"),
        "duration": _duration(seconds.get("total")),
        **{f"{name.replace('_', ' ')} tokens": f"{value:,}" for name, value in tokens.items() if is_number(value)},
    }
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<h1>{escape(run)}</h1>\n<dl class=facts>{items}</dl>"


def _duration(seconds: object) -> str | None:
    if not isinstance(seconds, int | float) or not is_number(seconds):
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _notice(blocks: Mapping[str, Mapping[str, Any]]) -> str:
    missing = [STAGES[stage] for stage in shown(blocks) if not blocks[stage]]
    if not missing:
        return ""
    return f"<p class=notice>Not evaluated in this run (yet): {escape(', '.join(missing))}.</p>"


def _table(blocks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    columns = shown(blocks)
    groups = "".join(f"<th colspan={len(columns)} class=group>{escape(title)}</th>" for title in SETS.values())
    stages = "".join(
        f"<th{' class=group' if i == 0 else ''}>{escape(STAGES[stage])}</th>" for _ in SETS for i, stage in enumerate(columns)
    )
    body = ""
    for key, label in _ROWS.items():
        cells = ""
        for task_set in SETS:
            for i, stage in enumerate(columns):
                cells += f"<td{' class=group' if i == 0 else ''}>{_cell(blocks[stage].get(task_set) or {}, key)}</td>"
        body += f"<tr class={'floor' if key.startswith('noop') else 'row'}><th>{escape(label)}</th>{cells}</tr>\n"
    return f"<table><thead><tr><th></th>{groups}</tr><tr><th></th>{stages}</tr></thead><tbody>{body}</tbody></table>"


def _cell(block: Mapping[str, Any], key: str) -> str:
    value = block.get(key)
    if not isinstance(value, int | float) or not is_number(value):
        return "–"
    if key == "n":
        return str(int(value))
    interval = (block.get("ci95") or {}).get(key)
    small = f"<small>{interval[0]:.2f} to {interval[1]:.2f}</small>" if interval else ""
    return f"{value:.3f}{small}"


def _conversations(folder: Path) -> str:
    """A few tasks, each as it was played at every evaluation."""
    played: dict[str, dict[str, dict[str, Any]]] = {}
    for path in (path for path in trajectory_files(folder) if "eval" in path.name):
        for episode in _episodes(path):
            stage = str(episode.get("stage", "")).removeprefix("eval/")
            if stage in STAGES:
                played.setdefault(str(episode["task_id"]), {}).setdefault(stage, episode)
    if not played:
        return "<p>No evaluation episodes are stored.</p>"
    parts = []
    for task_id in _pick(played):
        episodes = played[task_id]
        kind = next(iter(episodes.values())).get("kind", "")
        stages = "".join(_conversation(STAGES[stage], episodes[stage]) for stage in STAGES if stage in episodes)
        parts.append(f"<h3>{escape(str(kind))} <small>task {escape(task_id)}</small></h3>\n{stages}")
    return "\n".join(parts)


def _sampled(rows: Sequence[Mapping[str, Any]]) -> str:
    """The conversations that training kept to be read (`tracking.conversation_episodes`), the latest last."""
    parts = []
    for row in rows:
        for one in row.get("conversations", ()) if not str(row["stage"]).startswith("eval/") else ():
            said = [{"role": m.get("role"), "content": m.get("text")} for m in one.get("messages", ())]
            facts = {"reward": {"total": one.get("reward")}, "metrics": {"official_reward": one.get("official")}}
            episode = {**facts, "stop_reason": one.get("stop"), "messages": said}
            parts.append(_conversation(f"{row['stage']}, step {row['step']}: task {one.get('task')}", episode))
    return "\n".join(parts[-SAMPLED:]) or "<p>None was kept.</p>"


def _pick(played: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Task ids, of different kinds first, those played at most stages first."""
    order = sorted(played, key=lambda task_id: -len(played[task_id]))
    kinds: dict[str, list[str]] = {}
    for task_id in order:
        kinds.setdefault(str(next(iter(played[task_id].values())).get("kind", "")), []).append(task_id)
    picked: list[str] = []
    while len(picked) < min(SAMPLE_TASKS, len(order)):
        picked += [tasks.pop(0) for tasks in kinds.values() if tasks]
    return picked[:SAMPLE_TASKS]


def _conversation(stage: str, episode: Mapping[str, Any]) -> str:
    metrics, reward = episode.get("metrics") or {}, episode.get("reward") or {}
    numbers = {"reward": reward.get("total"), "F1": metrics.get("f1"), "official": metrics.get("official_reward")}
    facts = [f"{name} {value:.2f}" for name, value in numbers.items() if isinstance(value, int | float) and is_number(value)]
    facts.append(str(episode.get("stop_reason") or "unfinished"))
    lines = "\n".join(_message(message) for message in episode.get("messages", ()))
    return (
        f"<details><summary><b>{escape(stage)}</b> <span>{escape(' · '.join(facts))}</span></summary>"
        f"<div class=talk>{lines}</div></details>"
    )


def _message(message: Mapping[str, Any]) -> str:
    role = message.get("role") if message.get("role") in ("user", "assistant", "tool") else "other"
    parts = []
    if message.get("content"):
        text = str(message["content"])
        cut = f"{text[:MAX_MESSAGE_CHARS]} … ({len(text):,} characters)" if len(text) > MAX_MESSAGE_CHARS else text
        parts.append(f"<p>{escape(cut)}</p>")
    for action in message.get("actions", ()):
        arguments = json.dumps(action.get("arguments"), ensure_ascii=False)
        parts.append(f"<code>{escape(str(action.get('name')))}({escape(arguments[:MAX_MESSAGE_CHARS])})</code>")
    if message.get("parse_failure"):
        parts.append(f"<p class=bad>did not parse: {escape(str(message['parse_failure']))}</p>")
    bad = " bad" if message.get("error") else ""
    return f'<div class="{role}{bad}"><i>{role}</i>{"".join(parts)}</div>'


_CSS = """
:root { color-scheme: light dark; --ground:#f5f7f9; --card:#fff; --ink:#1c2530; --soft:#5c6977; --line:#dde3e9;
  --user:#eaf2fd; --tool:#f2f4f6; --bad:#b3261e; --accent:#3b7dd8 }
@media (prefers-color-scheme: dark) { :root { --ground:#0d1117; --card:#161b22; --ink:#dce3ea; --soft:#94a1ae; --line:#2b333d;
  --user:#1b2a3f; --tool:#1d232b; --bad:#ff8a80; --accent:#5b9bf0 } }
* { box-sizing: border-box }
body { margin:0 auto; padding:2rem 1.25rem 4rem; max-width:1180px; background:var(--ground); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size:1.7rem; margin:0 0 .8rem } h2 { font-size:1.15rem; margin:2.2rem 0 .7rem }
h3 { font-size:1rem; margin:1.3rem 0 .4rem } h3 small { color:var(--soft); font-weight:normal }
.facts { display:flex; flex-wrap:wrap; gap:.6rem 2rem; margin:0 } .facts div { min-width:5rem }
.facts dd { margin:0; font-weight:600 }
.facts dt { color:var(--soft); font-size:.78rem; text-transform:uppercase; letter-spacing:.04em }
.notice { border-left:4px solid var(--accent); background:var(--card); padding:.6rem 1rem; margin:1.2rem 0 0 }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:1rem; overflow-x:auto }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th, td { padding:.4rem .7rem; text-align:right; white-space:nowrap; border-bottom:1px solid var(--line) }
thead th { color:var(--soft); font-weight:600; font-size:.85rem } th.group, td.group { border-left:1px solid var(--line) }
thead tr:first-child th { text-align:left; color:var(--ink) } tbody th { text-align:left; font-weight:500 }
tbody tr:last-child > * { border-bottom:0 } td small { display:block; color:var(--soft); font-size:.74rem }
tr.floor { color:var(--soft) } img { width:100%; height:auto; display:block }
details { background:var(--card); border:1px solid var(--line); border-radius:8px; margin:.35rem 0 }
summary { cursor:pointer; padding:.5rem .9rem } summary span { color:var(--soft); margin-left:.6rem }
.talk { padding:.2rem .9rem 1rem; display:flex; flex-direction:column; gap:.45rem }
.talk > div { border-radius:8px; padding:.45rem .8rem; max-width:85%; overflow-wrap:anywhere; border:1px solid var(--line) }
.talk .user { background:var(--user); align-self:flex-end } .talk .tool { background:var(--tool); font-size:.88rem }
.talk i { font-style:normal; font-size:.72rem; color:var(--soft); text-transform:uppercase; letter-spacing:.05em }
.talk p { margin:.1rem 0; white-space:pre-wrap } .bad, .bad p { color:var(--bad) }
code, pre { font:13px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace } code { display:block }
pre { margin:0; padding:.4rem 1rem 1rem; overflow-x:auto } footer { color:var(--soft); font-size:.85rem; margin-top:2rem }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<header>{header}</header>
{notice}
<h2>Scores</h2>
<div class="card">{table}</div>
<h2>Curves</h2>
<div class="card"><picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">
<img alt="Scores with intervals, SFT loss, GRPO reward, policy statistics and time split"
src="data:image/png;base64,{light}"></picture></div>
<h2>The same tasks at every evaluation</h2>
{conversations}
<h2>Sampled while training</h2>
{sampled}
<h2>Configuration</h2>
<details><summary>config.yaml</summary><pre>{config}</pre></details>
<footer>Rates are fractions from 0 to 1; ranges are 95% bootstrap intervals over tasks. The official reward is τ²-bench's
without its LLM judge. An agent that does nothing passes the database check of some tasks: the dashed line.</footer>
</body>
</html>
"""
