"""Does GRPO earn its place? GRPO against SFT continued for the same seconds from the same checkpoint, paired by task.

    python -m training.main +experiment=grpo_study

One SFT checkpoint; for each seed two arms start from it, one after the other on the idle machine: `grpo`, whose seconds contain
rollouts, updates and syncs, and `sft_continued`, which goes on with SFT for as many seconds, on episodes in another order.
Both are evaluated on the same held-out tasks. `study.json` holds every block, the paired differences and their intervals.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from envs.errors import TaudojoError
from rewards.metrics import EpisodeMetrics, block, paired_difference
from rollouts.store import read_file
from rollouts.trajectory import Trajectory
from training.checkpoints import ensure_whole
from training.config import RunConfig
from training.main import Session
from training.progress import console
from training.run import SFT_CHECKPOINT, StopSignal, write_atomically

ARMS = ("grpo", "sft_continued")
METRICS = ("action_f1", "action_exact", "write_db_match", "official_reward", "reward", "well_formed")


class StudySession(Session):
    """A session whose plan is: SFT, then every arm of every seed."""

    def plan(self) -> list[tuple[str, Any]]:
        assert self.config.study is not None
        start = self.sft if self.config.study.run is None else self.adopt
        stages: list[tuple[str, Any]] = [("sft", start), ("eval/after_sft", self.evaluate)]
        for seed in self.config.study.seeds:
            for arm in ARMS:
                stages.append((f"arm/{arm}-{seed}", self.arm))
        return stages

    def adopt(self, stage: str, stop: StopSignal) -> None:
        """Takes the SFT checkpoint of a finished run."""
        assert self.config.study is not None and self.config.study.run is not None
        source = Path(self.config.study.run) / SFT_CHECKPOINT
        if not (source / "state.json").is_file():
            raise TaudojoError(f"study.run={self.config.study.run}: there is no {SFT_CHECKPOINT} in it")
        ensure_whole(source)
        shutil.copytree(source, self.folder.path / SFT_CHECKPOINT, dirs_exist_ok=True)
        self.folder.state.checkpoint = SFT_CHECKPOINT
        self.learner.load(self.folder.path / SFT_CHECKPOINT)
        self.sync.run()

    def arm(self, stage: str, stop: StopSignal) -> None:
        """Back to the SFT checkpoint, train one arm, evaluate. An interrupted arm starts again."""
        from training.stages.grpo import Parts, begin_optimizer, run_grpo
        from training.stages.sft import run_sft

        assert self.config.study is not None
        name, seed = stage.removeprefix("arm/").rsplit("-", 1)
        config, learner, state = self.config, self.learner, self.folder.state
        learner.load(self.folder.path / SFT_CHECKPOINT)
        state.step, state.stage_seconds = 0, 0.0
        self.sync.run()
        try:
            if name == "grpo":
                begin_optimizer(learner, config.grpo)
                if config.algorithm.kl_coef > 0:
                    learner.keep_reference()
                settings = config.grpo.model_copy(update={"checkpoint_steps": 10**9})
                parts = Parts(self.pool, learner, self.sync, self.credit(), config.rollout)
                tasks = self.tasks.grpo
                run_grpo(
                    settings, config.algorithm, int(seed) + 1, tasks, parts, self.store, self.folder, self.tracker, stop, stage
                )
            else:
                # To the second: GRPO ends where a step ends.
                seconds = state.seconds.get(f"arm/grpo-{seed}", config.grpo.seconds)
                budget = {"seconds": seconds, "steps": config.grpo.steps, "lr": config.study.sft_lr or config.sft.lr}
                settings_sft = config.sft.model_copy(update=budget | {"checkpoint_steps": None})
                samples, kinds, _ = self.sft_samples()
                run_sft(settings_sft, int(seed) + 1, samples, learner, self.folder, self.tracker, stop, stage, kinds=kinds)
                self.sync.run()
        finally:
            state.checkpoint = SFT_CHECKPOINT
        state.seconds[stage] = round(state.stage_seconds, 2)
        self.evaluate(f"eval/{name}-{seed}", stop)

    def report(self) -> None:
        arms = {stage: s for stage, s in self.folder.state.seconds.items() if stage.startswith("arm/")}
        results = compare(self.folder.path, self.config, arms)
        write_atomically(self.folder.path / "study.json", json.dumps(results, indent=1) + "\n")
        draw(results, self.folder.path / "study.png")
        print_study(results)
        console.print(f"results: {self.folder.path / 'study.json'}", soft_wrap=True)


def _metrics(path: Path, heldout: set[str]) -> list[EpisodeMetrics]:
    played: list[Trajectory] = [t for t in read_file(path) if t.transcript.task_id in heldout]
    return [t.metrics for t in played]


def compare(folder: Path, config: RunConfig, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Blocks of every arm on the held-out tasks, and GRPO − SFT continued per seed and over all seeds."""
    assert config.study is not None
    group = 0 if config.evaluate.test == 0 else 1  # evaluations play the official test tasks before the held-out ones
    start = [t for t in read_file(folder / "trajectories" / "eval-after_sft-0000.jsonl") if t.group == group]
    heldout = {t.transcript.task_id for t in start}
    played = {
        arm: {seed: _metrics(folder / "trajectories" / f"eval-{arm}-{seed}-0000.jsonl", heldout) for seed in config.study.seeds}
        for arm in ARMS
    }
    pooled = {arm: [m for metrics in of_seed.values() for m in metrics] for arm, of_seed in played.items()}
    kinds = sorted({t.kind for t in start})
    return {
        "seeds": config.study.seeds,
        "heldout_tasks": len(heldout),
        "seconds": {"sft": config.sft.seconds, **seconds},
        "checkpoint": block([t.metrics for t in start]),
        "arms": {arm: {str(seed): block(m) for seed, m in of_seed.items()} for arm, of_seed in played.items()},
        "by_kind": {
            kind: {
                "checkpoint": block([t.metrics for t in start if t.kind == kind])["action_f1"],
                **{arm: block([m for m in pooled[arm] if m.kind == kind])["action_f1"] for arm in ARMS},
            }
            for kind in kinds
        },
        "difference": {
            metric: {
                "pooled": paired_difference(pooled["grpo"], pooled["sft_continued"], metric),
                "grpo_minus_checkpoint": paired_difference(
                    pooled["grpo"], [t.metrics for t in start] * len(config.study.seeds), metric
                ),
                **{
                    str(seed): paired_difference(played["grpo"][seed], played["sft_continued"][seed], metric)
                    for seed in config.study.seeds
                },
            }
            for metric in METRICS
        },
    }


def print_study(results: dict[str, Any]) -> None:
    """The closing table."""
    table = Table(title=f"{results['heldout_tasks']} held-out tasks, {len(results['seeds'])} seeds, fractions 0 to 1")
    for column in ("metric", "checkpoint", *ARMS, "GRPO − SFT continued", "95% interval"):
        table.add_column(column)
    for metric in METRICS:
        means = [sum(b[metric] for b in results["arms"][arm].values()) / len(results["seeds"]) for arm in ARMS]
        difference = results["difference"][metric]["pooled"]
        low, high = difference["ci95"]
        table.add_row(
            metric,
            f"{results['checkpoint'][metric]:.3f}",
            *(f"{m:.3f}" for m in means),
            f"{difference['mean']:+.3f}",
            f"[{low:+.3f}, {high:+.3f}]",
        )
    console.print(table)


def draw(results: dict[str, Any], path: Path) -> None:
    """Each metric at the checkpoint and after both arms (a dot for each seed), with the do-nothing floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
    colours = {"grpo": "#2563eb", "sft_continued": "#f59e0b"}
    for axis, metric in zip(axes, METRICS, strict=False):
        axis.axhline(results["checkpoint"][metric], color="#6b7280", linewidth=1, label="SFT checkpoint")
        for x, arm in enumerate(ARMS):
            values = [b[metric] for b in results["arms"][arm].values()]
            axis.bar(x, sum(values) / len(values), width=0.6, color=colours[arm], alpha=0.6)
            axis.scatter([x] * len(values), values, color="black", s=14, zorder=3)
        if metric == "write_db_match":
            axis.axhline(results["checkpoint"]["noop_write_db_match"], color="#dc2626", linestyle="--", label="do nothing")
        difference = results["difference"][metric]["pooled"]
        low, high = difference["ci95"]
        axis.set_title(f"{metric}\nΔ {difference['mean']:+.3f} [{low:+.3f}, {high:+.3f}]", fontsize=9)
        axis.set_xticks(range(len(ARMS)), ["GRPO", "SFT continued"])
        axis.set_ylim(0, 1)
        axis.legend(fontsize=7)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    temporary.replace(path)
