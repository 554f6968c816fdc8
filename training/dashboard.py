"""The dashboard of a wandb project: sections of panels over the numbers that runs log, made once for each project.

    taudojo dashboard --project taudojo --entity my-team

A run with `tracking=wandb` makes it by itself. For runs sent later by `wandb sync`, the command does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from envs.errors import TaudojoError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "taudojo"
#: One for each project, so that it is found again.
VIEW = "nw-taudojo-v"


@dataclass(frozen=True)
class Panel:
    """`names` are metrics with their stage, or one pattern of names where there are as many as a run logs.

    kind: `lines` by step; `stack`, lines on top of each other; `bars`, the last values; `table`, a table of episodes.
    """

    title: str
    names: tuple[str, ...]
    kind: Literal["lines", "stack", "pattern", "bars", "table"] = "lines"


def grpo(title: str, *names: str, kind: Literal["lines", "stack", "pattern"] = "lines") -> Panel:
    """A panel over the steps of GRPO."""
    return Panel(title, tuple(f"grpo/{name}" for name in names), kind)


def evaluations(title: str, metric: str) -> Panel:
    """A panel of one metric at every evaluation."""
    stages = ("before", "after_sft", "after_rft", "after_grpo")
    return Panel(title, tuple(f"eval/{stage}/{metric}" for stage in stages), "bars")


LAYOUT: dict[str, tuple[Panel, ...]] = {
    "Reward": (
        grpo("Reward", "reward/mean", "reward/best"),
        grpo("Raw and shaped", "batch_reward/raw", "batch_reward/shaped"),
        grpo("Components", "batch_reward/.+", kind="pattern"),
        grpo("Spread within groups", "reward/group_std", "reward/group_variance"),
        grpo("Groups without a signal", "flat_groups"),
        grpo("Advantages, mean size", "advantage/abs_mean"),
    ),
    "Success": (
        grpo("Success and pass rates", "success/rate", "success/pass_at_k", "success/pass_hat_k"),
        grpo("Calls", "well_formed", "action_f1", "action_exact"),
        grpo("Parse failures", "batch_reward/parse_failure_rate"),
        evaluations("Held-out tasks: official reward", "heldout/official_reward"),
        evaluations("Held-out tasks: action F1", "heldout/action_f1"),
        evaluations("τ² test tasks: official reward", "test/official_reward"),
    ),
    "Rollout": (
        grpo("Endings", "stop/.+", kind="pattern"),
        grpo("Turns", "episode/turns", "episode/turns_max", "episode/calls"),
        grpo("Tokens", "episode/tokens", "episode/tokens_max", "episode/sampled_tokens", "episode/sampled_tokens_max"),
        grpo("Seconds of an episode", "episode/seconds", "episode/seconds_max"),
        grpo("Staleness, in weight versions", "staleness/mean", "staleness/max"),
        grpo("Episodes", "episodes", "trained_episodes", "excluded", "episode/retried"),
        Panel("Samples", ("grpo/samples",), "table"),
        Panel("Conversations", ("grpo/conversations",), "table"),
    ),
    "Learner": (
        grpo("Entropy", "entropy"),
        grpo("Importance ratio", "ratio", "max/sampler_ratio"),
        grpo("KL to the sampler", "kl_sampler"),
        grpo("Clipped and cut tokens", "pg_clipfrac", "tis_truncated", "sampler_masked"),
        grpo("Gradient norm", "grad_norm"),
        grpo("Policy loss", "loss"),
        Panel("SFT loss", ("sft/loss", "sft/heldout_loss")),
        grpo("Learning rate", "lr"),
    ),
    "Time": (
        grpo(
            "Where a step's time goes",
            *(f"seconds/{part}" for part in ("rollout", "reward", "prepare", "update", "sync", "idle")),
            kind="stack",
        ),
        grpo("Seconds of a step", "seconds/step"),
        grpo("Tokens per second", "gen_tokens_per_s", "tokens_per_s"),
    ),
    "System": (
        grpo("Engine utilisation", "engine/utilisation"),
        grpo("Requests in flight", "engine/in_flight"),
        grpo("KV-cache hit rate", "engine/kv_cache_hit_rate"),
        grpo("Sync, seconds", "sync/transfer_s", "sync/probe_s"),
        grpo("Sync, |Δ log-prob| on the probe", "sync/mean_gap", "sync/max_gap"),
        grpo("Tokens trained and computed", "tokens", "unique_tokens"),
    ),
}


def workspace(entity: str, project: str) -> Workspace:
    """The dashboard as wandb's own objects; nothing is sent."""
    from wandb_workspaces import workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, panels=[_drawn(panel) for panel in panels], is_open=True) for name, panels in LAYOUT.items()
        ],
    )


def ensure_dashboard(entity: str, project: str) -> str:
    """Makes the dashboard if the project has none, and returns its address. An existing one is left as its users arranged it.

    Raises what wandb's client raises where the service does not answer or refuses.
    """
    from wandb_workspaces.workspaces import internal

    new = workspace(entity, project)
    new._internal_name = VIEW
    try:
        internal.get_view_dict(entity, project, NAME)
    except ValueError:  # there is none
        new.save()
    return str(new.url)


def _drawn(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.names[0], layout=wr.Layout(w=24, h=12))
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.names))
    stage = panel.names[0].split("/")[0]
    lines: dict[str, Any] = {"title": panel.title, "x": f"{stage}/step"}
    if panel.kind == "pattern":
        return wr.LinePlot(metric_regex=panel.names[0], **lines)
    return wr.LinePlot(y=list(panel.names), plot_type="stacked-area" if panel.kind == "stack" else "line", **lines)


def make_dashboard(project: str, entity: str | None) -> str:
    """The same for a person: `entity` None is their default one. Raises TaudojoError with the reason where it cannot be made."""
    from training.tracking import default_entity

    entity = entity or default_entity()
    try:
        return ensure_dashboard(entity, project)
    except Exception as error:  # whatever a service on the network comes up with
        raise TaudojoError(f"the dashboard of {entity}/{project} was not made: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
