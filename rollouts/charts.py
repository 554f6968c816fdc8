"""The charts of a run: scores with intervals, losses, rewards, the health of the policy, and where the time went.

Draws what is there: a run that stopped half-way has empty panels that say so.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

STAGES = {"before": "before", "after_sft": "after SFT", "after_rft": "after RFT", "after_grpo": "after GRPO"}
#: Stages that most runs leave out: shown where they were evaluated.
OPTIONAL = ("after_rft",)
SETS = {"heldout": "Held-out generated tasks", "test": "Official τ² test tasks"}
SCORES = {
    "well_formed": "well-formed\ncalls",
    "action_f1": "action F1",
    "action_exact": "action\nexact",
    "write_db_match": "database match\n(write tasks)",
    "official_reward": "official\nreward",
}
_FLOOR = "do-nothing agent"
Rows = Sequence[Mapping[str, Any]]
Blocks = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Theme:
    """Colours of one look."""

    ground: str
    ink: str
    faint: str
    stages: tuple[str, str, str, str]
    lines: tuple[str, str, str, str]


LIGHT = Theme(
    "#ffffff", "#1c2530", "#d9dee5", ("#a9b4c0", "#3b7dd8", "#2c9c73", "#e0762f"), ("#3b7dd8", "#e0762f", "#2c9c73", "#8a63c9")
)
DARK = Theme(
    "#161b22", "#dce3ea", "#323b46", ("#66727f", "#5b9bf0", "#46bd90", "#f0924f"), ("#5b9bf0", "#f0924f", "#46bd90", "#a98be0")
)


def shown(blocks: Blocks) -> list[str]:
    """The stages that have a place in charts and tables."""
    return [stage for stage in STAGES if stage not in OPTIONAL or blocks.get(stage)]


def draw(blocks: Blocks, rows: Rows, seconds: Mapping[str, float], theme: Theme = LIGHT, dpi: int = 120) -> bytes:
    """A PNG of all charts.

    Args:
        blocks: stage -> task set -> the block of `rewards.metrics.block`
        rows: the lines of metrics.jsonl
        seconds: stage -> duration
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9.5,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.7,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": theme.ground,
        "figure.facecolor": theme.ground,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(13, 13.5), dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        rows_of_panels: Any = figure.subfigures(3, 1, height_ratios=[1.1, 1, 1], hspace=0.04)
        top, middle, bottom = rows_of_panels
        axes = top.subplots(1, 2, sharey=True)
        for ax, task_set in zip(axes, SETS, strict=True):
            _scores(ax, blocks, task_set, theme)
        handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[0]))
        if handles:
            order = sorted(range(len(labels)), key=lambda i: labels[i] == _FLOOR)
            top.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper right", ncols=len(order))
        left, right = middle.subplots(1, 2)
        _sft_loss(left, _series_of(rows, "sft"), _series_of(rows, "rft"), theme)
        _grpo_reward(right, _series_of(rows, "grpo"), theme)
        health, time = bottom.subfigures(1, 2)
        _policy_health(health, _series_of(rows, "grpo"), theme)
        _time_split(time.subplots(), seconds, _series_of(rows, "grpo"), theme)
        return _png(figure)


class Series:
    """The metrics of one stage, by step."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def get(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of the rows in which the metric is a finite number."""
        points = [(row["step"], row["metrics"][name]) for row in self.rows if is_number(row["metrics"].get(name))]
        return [float(step) for step, _ in points], [float(value) for _, value in points]


def _series_of(rows: Rows, stage: str) -> Series:
    return Series([row for row in rows if row["stage"] == stage])


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scores(ax: Axes, blocks: Blocks, task_set: str, theme: Theme) -> None:
    present = [stage for stage in STAGES if blocks.get(stage, {}).get(task_set)]
    n = next((blocks[stage][task_set].get("n") for stage in present), None)
    ax.set_title(SETS[task_set] + (f"  (n = {n:g})" if is_number(n) else ""))
    if not present:
        _empty(ax, "not evaluated yet")
        return
    stages = shown(blocks)
    width = 0.8 / len(stages)
    for i, stage in enumerate(stages):
        colour = theme.stages[list(STAGES).index(stage)]
        block = blocks.get(stage, {}).get(task_set) or {}
        for x, name in enumerate(SCORES):
            if not is_number(value := block.get(name)):
                continue
            at = x + (i - (len(stages) - 1) / 2) * width
            label = STAGES[stage] if name == next(k for k in SCORES if is_number(block.get(k))) else None
            ax.bar(at, value, width * 0.9, color=colour, label=label)
            low, high = (block.get("ci95") or {}).get(name) or (value, value)
            if high > low:
                ax.errorbar(at, value, [[max(value - low, 0)], [max(high - value, 0)]], color=theme.ink, lw=1, capsize=2)
            box = {"facecolor": theme.ground, "edgecolor": "none", "pad": 0.6}
            text = f"{value:.2f}".replace("0.", ".", 1)
            ax.text(at, max(value, high) + 0.02, text, ha="center", fontsize=7.5, bbox=box, zorder=4)
    floor = next((f for stage in present if is_number(f := blocks[stage][task_set].get("noop_write_db_match"))), None)
    if floor is not None:
        x = list(SCORES).index("write_db_match")
        ax.plot([x - 0.48, x + 0.48], [floor, floor], "--", color=theme.ink, lw=1.6, label=_FLOOR, zorder=3)
    ax.set_xticks(range(len(SCORES)), list(SCORES.values()))
    ax.set_xlim(-0.55, len(SCORES) - 0.45)
    ax.set_ylim(0, 1.12)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    ax.grid(axis="x", visible=False)
    ax.tick_params(length=0)


def _sft_loss(ax: Axes, sft: Series, rft: Series, theme: Theme) -> None:
    ax.set_title("SFT loss (nats per token)")
    steps, loss = sft.get("loss")
    held_steps, held = sft.get("heldout_loss")
    rft_steps, rft_loss = rft.get("loss")
    if not steps and not held_steps and not rft_steps:
        _empty(ax, "no SFT steps")
        return
    if steps:
        ax.plot(steps, loss, color=theme.lines[0], alpha=0.3, lw=1)
        ax.plot(steps, smooth(loss), color=theme.lines[0], label="training (smoothed)")
    if held:
        ax.plot(held_steps, held, "o-", ms=4, color=theme.lines[1], label="held-out")
    if rft_steps:
        after = max(steps, default=-1.0) + 1
        ax.plot([after + step for step in rft_steps], smooth(rft_loss), color=theme.lines[2], label="RFT (smoothed)")
    _whole_steps(ax, label=False)
    ax.set_xlabel("optimizer step")
    ax.set_ylim(bottom=0)
    ax.legend()


def _grpo_reward(ax: Axes, grpo: Series, theme: Theme) -> None:
    ax.set_title("GRPO reward of the sampled episodes")
    steps, mean = grpo.get("reward/mean")
    if not steps:
        _empty(ax, "no GRPO steps")
        return
    std = dict(zip(*grpo.get("reward/std"), strict=True))
    low = [m - std.get(s, 0.0) for s, m in zip(steps, mean, strict=True)]
    high = [m + std.get(s, 0.0) for s, m in zip(steps, mean, strict=True)]
    ax.fill_between(steps, low, high, color=theme.lines[0], alpha=0.15, lw=0)
    ax.plot(steps, mean, "o-", ms=3, color=theme.lines[0], label="shaped reward, mean ± std")
    official_steps, official = grpo.get("batch_reward/official")
    if official:
        ax.plot(official_steps, official, "o-", ms=3, color=theme.lines[1], label="official reward, mean")
    _whole_steps(ax)
    ax.legend()


def _policy_health(figure: SubFigure, grpo: Series, theme: Theme) -> None:
    panels = {
        "kl_sampler": "KL to the sampler (nats)",
        "entropy": "entropy (nats)",
        "pg_clipfrac": "clipped tokens (fraction)",
    }
    axes = figure.subplots(len(panels), 1, sharex=True)
    for i, (ax, (name, label)) in enumerate(zip(axes, panels.items(), strict=True)):
        steps, values = grpo.get(name)
        if i == 0:
            ax.set_title("GRPO policy")
        if not steps:
            _empty(ax, f"no {label.split(' (')[0]}")
            continue
        ax.plot(steps, values, "o-", ms=3, lw=1.4, color=theme.lines[i])
        ax.text(0.01, 0.97, label, transform=ax.transAxes, va="top", fontsize=8.5)
        low, high = min(values), max(values)
        ax.set_ylim(min(0.0, low), high + 0.35 * (high - min(0.0, low)) or 1.0)
        ax.locator_params(axis="y", nbins=4)
        _whole_steps(ax, label=i == len(panels) - 1)


def _time_split(ax: Axes, seconds: Mapping[str, float], grpo: Series, theme: Theme) -> None:
    ax.set_title("Time")
    run = {name: float(value) for name, value in seconds.items() if name != "total" and is_number(value)}
    phases = {name: sum(grpo.get(f"seconds/{name}")[1]) for name in ("rollout", "reward", "prepare", "update", "sync", "idle")}
    # A part of less than a thousandth has no width.
    bars = {"whole run": run, "inside GRPO": {k: v for k, v in phases.items() if v > 1e-3 * sum(phases.values())}}
    bars = {name: parts for name, parts in bars.items() if parts}
    if not bars:
        _empty(ax, "no times recorded")
        return
    longest = max(sum(parts.values()) for parts in bars.values())
    for y, parts in enumerate(bars.values()):
        left, slivers = 0.0, 0
        for i, (name, value) in enumerate(parts.items()):
            colour = theme.lines[i % len(theme.lines)]
            ax.barh(y, value, 0.42, left=left, color=colour, edgecolor=theme.ground, linewidth=1.5)
            # A sliver has no room inside: its name goes below, staggered.
            if value > 0.11 * longest:
                ax.text(left + value / 2, y, f"{name}\n{value:.0f} s", ha="center", va="center", fontsize=8.5, color="white")
            elif value > 0:
                below = y + 0.25 + 0.1 * (slivers % 3)
                ax.text(left + value / 2, below, f"{name} {value:.0f} s", ha="center", va="top", fontsize=8)
                slivers += 1
            left += value
        ax.text(left + 0.01 * longest, y, f"{left:.0f} s", va="center", fontsize=9, fontweight="bold")
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set_ylim(len(bars) - 0.4, -0.5)
    ax.set_xlim(0, longest * 1.1)
    ax.set_xlabel("seconds")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _whole_steps(ax: Axes, label: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = ax.get_xlim()
    if high - low < 1:  # a single step
        ax.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    if label:
        ax.set_xlabel("GRPO step")


def _empty(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", alpha=0.55)
    ax.set_xticks([])
    ax.set_yticks([], minor=False)
    ax.grid(visible=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the software entry the bytes depend on the figure alone.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
