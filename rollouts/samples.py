"""Episodes for a person to read: a few rows of a table, or one whole conversation.

    for trajectory in spread(trajectories, 4):
        row = sample_row(trajectory)          # {"task", "kind", "prompt", "conversation", "tool_calls", "reward", …}

What models, users and tools wrote is untrusted. It leaves here as plain text: nothing in it drives a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from envs.types import Action, Message
from rollouts.trajectory import Trajectory

Row = dict[str, str | float]

MAX_TEXT_CHARS = 8000
#: Of a table's cell on the console.
MAX_CELL_CHARS = 160


def spread(trajectories: Sequence[Trajectory], rows: int) -> list[Trajectory]:
    """So many episodes, from the worst reward to the best, evenly spaced by rank; all of them where there are fewer."""
    ranked = sorted(trajectories, key=lambda t: t.reward.total)
    if len(ranked) <= rows:
        return ranked
    if rows == 1:
        return [ranked[len(ranked) // 2]]
    return [ranked[round(i * (len(ranked) - 1) / (rows - 1))] for i in range(rows)]


def sample_row(trajectory: Trajectory) -> Row:
    """One row of the table: `prompt` is what the customer asked for first."""
    messages = trajectory.transcript.messages
    prompt = next((m.content for m in messages if m.role == "user" and m.content), "")
    lines = [f"{line['role']}: {line['text']}" for line in conversation(trajectory)]
    calls = [shown_call(action) for m in messages if m.role == "assistant" for action in m.actions]
    return {
        **facts(trajectory),
        "prompt": plain(prompt),
        "conversation": plain("\n".join(lines)),
        "tool_calls": plain("\n".join(calls)),
    }


def facts(trajectory: Trajectory) -> Row:
    """Which task it was, and what came of it."""
    stop = trajectory.transcript.stop_reason
    return {
        "task": plain(trajectory.transcript.task_id),
        "kind": plain(trajectory.kind),
        "reward": trajectory.reward.total,
        "official": trajectory.metrics.official_reward,
        "stop": stop.value if stop else "unfinished",
    }


def conversation(trajectory: Trajectory) -> list[dict[str, str]]:
    """Every message as `{"role", "text"}`; a call is written as `name(arguments)`."""
    return [{"role": m.role, "text": plain(_text(m))} for m in trajectory.transcript.messages]


def shown_call(action: Action) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in action.arguments.items())
    return f"{action.name}({arguments})"


def plain(text: str) -> str:
    """The text with control characters written as escapes, and cut where it is very long."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= MAX_TEXT_CHARS else f"{shown[:MAX_TEXT_CHARS]} … ({len(shown):,} characters)"


def print_samples(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table, a line or two for each episode."""
    table = Table("task", "prompt", "tool calls", "reward", "τ²", "end", title=title, title_justify="left")
    for row in rows:
        cells = (row["task"], row["prompt"], row["tool_calls"], f"{row['reward']:+.2f}", f"{row['official']:.0f}", row["stop"])
        table.add_row(*(Text(_cell(str(cell)), overflow="fold") for cell in cells))
    console.print(table)


def print_conversation(console: Console, title: str, lines: Sequence[Mapping[str, str]]) -> None:
    """The conversation, who speaks before each message. Further lines of a message are indented: none looks like another's."""
    console.print(Text(title, style="bold"))
    for line in lines:
        text = line["text"].replace("\n", "\n" + " " * 13)
        console.print(Text.assemble((f"  {line['role']:>9}  ", "dim"), text), soft_wrap=True)


def _text(message: Message) -> str:
    parts = [message.content] if message.content else []
    parts += [shown_call(action) for action in message.actions]
    if message.parse_failure:
        parts.append(f"[did not parse: {message.parse_failure}]")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text if len(text) <= MAX_CELL_CHARS else f"{text[:MAX_CELL_CHARS]} …"
