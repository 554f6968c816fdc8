"""The run: evaluate, SFT, evaluate, RFT, evaluate, GRPO, evaluate, report. Stages that are not enabled are left out.

    python -m training.main +experiment=grpo
    python -m training.main resume=outputs/grpo-20261120-101500

Composes the configuration, starts Ray, one learner and the rollout workers, and goes through the stages that are not done yet.
Errors that a user can put right end in one sentence and exit status 2; Ctrl-C leaves a resumable state.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from envs.identity import ensure_own_packages
except ImportError:
    print("taudojo: the package envs is somebody else's; run from another folder or mend PYTHONPATH", file=sys.stderr)
    raise SystemExit(2) from None
from envs.data import open_source
from envs.domain import load_domain
from envs.errors import TaudojoError
from training import IMPORTED
from training.checkpoints import ensure_whole
from training.compose import load, validate
from training.config import GRPOSection, RunConfig
from training.models import resolve_model
from training.progress import bar, console, shown
from training.resources import check_resources
from training.run import RFT_CHECKPOINT, SFT_CHECKPOINT, Interrupted, RunFolder, StopSignal
from training.startup import start_learner, start_pool, start_ray, world_config

if TYPE_CHECKING:
    from rollouts.trajectory import EpisodeRequest, Trajectory
    from training.learner.base import Sample

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
PROBE_TOKENS = 256


def main(arguments: Sequence[str] | None = None, began: float | None = None) -> int:
    """The command. Returns the exit status. `began`: When the process did, on the monotonic clock; by default now."""
    began = time.monotonic() if began is None else began
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    try:
        ensure_own_packages()
        run(load(with_device_defaults(overrides)), began, overrides)
    except TaudojoError as error:
        print(f"taudojo: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Interrupted as stopped:
        print(f"\nstopped; go on with: python -m training.main resume={shown(Path(str(stopped)))}")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("\nstopped before the run began")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (28, 122):  # ENOSPC, EDQUOT
            raise
        print(f"taudojo: the disk is full ({error.filename or error}); make room, then resume the run", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def with_device_defaults(overrides: list[str]) -> list[str]:
    """Adds `cluster=gpu` where a GPU is present and the user chose no cluster."""
    import torch

    chosen = any(o.lstrip("+").startswith(("cluster=", "resume=")) for o in overrides)
    return overrides if chosen or not torch.cuda.is_available() else [*overrides, "cluster=gpu"]


def run(config: RunConfig, began: float, overrides: Sequence[str] = ()) -> RunFolder:
    """Runs or resumes; returns the finished folder. `began` as for `main`. Raises Interrupted with the folder's path."""
    if config.resume:
        folder, own = RunFolder.resume(Path(config.resume))
        config = resumed(own, config, overrides)
    else:
        folder = RunFolder.create(config)
    console.print(f"run folder: {shown(folder.path)}", soft_wrap=True)
    session = new_session(config, folder)
    try:
        with StopSignal() as stop:
            session.run(stop, began)
    except (Interrupted, KeyboardInterrupt) as error:
        raise Interrupted(str(folder.path)) from error
    finally:
        session.close()
    return folder


def resumed(own: RunConfig, asked: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The run's own configuration, on the machines that the command line names where it names any.

    Raises:
        TaudojoError: `overrides` have something else that would have no effect.
    """
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if ignored := [key for key in keys if key not in ("resume", "experiment", "cluster") and not key.startswith("cluster.")]:
        raise TaudojoError(
            f"resume={asked.resume} goes on with the run's own configuration, in which only cluster.* may change: "
            f"leave out {', '.join(ignored)}, or begin a new run"
        )
    asked_cluster = asked.cluster.model_dump(mode="json")
    named = asked_cluster if "cluster" in keys else [key.removeprefix("cluster.") for key in keys if key.startswith("cluster.")]
    settings = own.model_dump(mode="json")
    settings["cluster"] |= {name: asked_cluster[name] for name in named}
    return validate(settings)


def new_session(config: RunConfig, folder: RunFolder) -> Session:
    """The session that the run's own configuration asks for, also when it is resumed."""
    if config.study is None:
        return Session(config, folder)
    from training.stages.study import StudySession

    return StudySession(config, folder)


class Session:
    """One process's work on a run: its parts, and the stages in order."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self._closers = ExitStack()

    def run(self, stop: StopSignal, began: float) -> None:
        """All stages that `state.json` does not list as done. Their time counts from `began`, but for what made the model."""
        from rollouts.store import TrajectoryStore
        from training.tracking import Tracker, drop_rows_to_come

        config, folder, state = self.config, self.folder, self.folder.state
        asked = time.monotonic()
        self.model_path = str(resolve_model(config.model))
        self.begin = began + (time.monotonic() - asked) - state.seconds.get("total", 0.0)
        with folder.timed("setup"):
            self.source = source = open_source(config.env.data.source, config.env.data.path)
            check_resources(config, self.model_path, folder.path)
            from training.tasks import choose_tasks

            domain = load_domain(config.env.domain, source)
            self.tasks = choose_tasks(domain, config)
            stages_to_come = [stage for stage, _ in self.plan() if stage not in state.done]
            drop_rows_to_come(folder.path / "metrics.jsonl", stages_to_come, state.step)
            tracker = Tracker(folder.path, config.tracking, folder.path.name, config.model_dump(mode="json"))
            self._closers.callback(tracker.close)
            self.tracker, self.store = tracker, TrajectoryStore(folder.path / "trajectories")
            self.start()

        for stage, work in self.plan():
            if stage in state.done:
                continue
            try:
                with folder.timed("eval" if stage.startswith("eval/") else stage.split("/")[0]):
                    work(stage, stop)
            finally:
                self.note_total()
            folder.finish(stage)
            if stop.raised:
                raise Interrupted
        self.report()

    def note_total(self) -> None:
        """`seconds.total` as of now."""
        self.folder.state.seconds["total"] = round(time.monotonic() - self.begin, 2)
        self.folder.save_state()

    def plan(self) -> list[tuple[str, Any]]:
        """Stage names and the methods that do them, in order."""
        stages: list[tuple[str, Any]] = [("eval/before", self.evaluate)]
        if self.config.sft.enabled:
            stages += [("sft", self.sft), ("eval/after_sft", self.evaluate)]
        if self.config.rft.enabled:
            stages += [("rft", self.rft), ("eval/after_rft", self.evaluate)]
        if self.config.grpo.enabled:
            stages += [("grpo", self.grpo), ("eval/after_grpo", self.evaluate)]
        if not self.config.evaluate.enabled:
            stages = [stage for stage in stages if stage[1] != self.evaluate]
        stages.append(("export", self.export))
        if self.config.checkpoints.best is not None:
            stages.append(("export/best", self.export_best))
        return stages

    # -- parts

    def start(self) -> None:
        """Ray, the rollout workers and the learner, side by side, both with the newest weights."""
        from rollouts.events import event_settings
        from rollouts.worker import build_world
        from training.sync import NoEngines, WeightSync

        world = world_config(self.config, self.model_path, self.source, event_settings(self.folder.path))
        start_ray(self.config)
        console.print(f"starting {'the rollout engine and ' * self.config.plays}the learner …")
        with_threads = ThreadPoolExecutor(2)
        try:
            pool = with_threads.submit(start_pool, self.config, self.model_path, world, self._closers)
            learner = with_threads.submit(start_learner, self.config, self.model_path, self._closers)
            self.world = build_world(world)
            self.pool, self.learner = pool.result(), learner.result()
            self.pool.store = self.store
        finally:
            with_threads.shutdown(wait=False)  # a second Ctrl-C ends at once
        self.sync = (
            WeightSync(
                self.learner,
                self.pool,
                self.probe_prompts(),
                self.config.model.dtype,
                self.folder.state.weight_version,
                self.note_weight_version,
            )
            if self.config.plays
            else NoEngines()
        )
        ahead = self.config.rollout.mode != "sync"
        if ahead:  # a worker may be rebuilt when the learner is further than the engines
            self.pool.weights_source = None
        newest = self.folder.newest_checkpoint()
        if newest is not None:
            self.take_up(newest)
        if newest is not None or ahead:
            self.sync.run()

    def take_up(self, checkpoint: Path) -> None:
        """The learner, which has the model's own weights, goes on from a checkpoint."""
        if self.config.algorithm.kl_coef > 0 and not self.trains_before_grpo:
            self.learner.keep_reference()  # nothing else has what GRPO started from
        console.print(f"loading {shown(checkpoint)}", soft_wrap=True)
        self.learner.load(checkpoint)

    def probe_prompts(self) -> list[list[int]]:
        """The ends of two gold episodes: what the policy reads and writes, not the system prompt that all begin with."""
        from rollouts.gold import gold_trajectories

        played = gold_trajectories(self.world, self.tasks.sft[:8])
        if not played:
            raise self.nothing_fits()
        return [s.token_ids[-PROBE_TOKENS:] for t in played[:2] for s in t.segments[:1]]

    # -- stages

    def evaluate(self, stage: str, stop: StopSignal) -> None:
        from rollouts.evaluate import evaluate

        sets = {name: tasks for name, tasks in (("test", self.tasks.test), ("heldout", self.tasks.heldout)) if tasks}
        total = sum(map(len, sets.values()))
        played, begin = 0, time.monotonic()
        with bar(stage, total) as progress_bar:

            def on_done(_: Any) -> None:
                nonlocal played
                played += 1
                progress_bar.update(played, f"{played}/{total} episodes")
                if stop.raised:  # nothing is lost: a resumed run evaluates this stage anew
                    raise Interrupted

            result = evaluate(
                self.pool,
                sets,
                stage=stage,
                temperature=self.config.evaluate.temperature,
                seed=self.config.seed,
                on_done=on_done,
            )
        self.store.write(stage, 0, result.trajectories)
        self.folder.count("evaluation_sampled", sum(t.sampled_tokens for t in result.trajectories))
        self.tracker.log(stage, 0, result.flat(), result.trajectories)
        self.folder.state.blocks[stage.removeprefix("eval/")] = result.blocks
        self.folder.state.evaluation_seconds = round(time.monotonic() - begin, 2)
        for name, block in result.blocks.items():
            console.print(
                f"  {stage} {name}: well-formed {block['well_formed']:.2f}  action F1 {block['action_f1']:.2f}  "
                f"official {block['official_reward']:.2f}  ({block['n']} tasks)",
                soft_wrap=True,
            )

    def sft(self, stage: str, stop: StopSignal) -> None:
        from training.stages.sft import run_sft

        config, learner, (samples, kinds, heldout) = self.config, self.learner, self.sft_samples()
        steps = run_sft(config.sft, config.seed, samples, learner, self.folder, self.tracker, stop, heldout=heldout, kinds=kinds)
        self.folder.checkpoint("sft", learner, {"stage": "sft", "step": steps})
        self.export_model("sft_model")
        self.sync.run()

    def sft_samples(self) -> tuple[list[Sample], list[str], list[Sample]]:
        """SFT's samples, their kinds, and those held out: expert's episodes of the training tasks, recorded ones, or both."""
        from rollouts.gold import gold_trajectories
        from training.sft_data import shortest_of_each_kind, split_by_task
        from training.stages.sft import kinds_of, samples_of

        settings = self.config.sft
        gold = gold_trajectories(self.world, self.tasks.sft) if settings.gold else []
        trajectories = shortest_of_each_kind(gold, settings.shortest)
        if settings.gold and not trajectories:
            raise self.nothing_fits()
        trajectories += self.recorded()
        train, heldout = split_by_task(trajectories, settings.heldout_fraction, self.config.seed)
        samples = samples_of(train)
        told = f"{len(train)} {'gold' if settings.gold else 'recorded'} episodes"
        if settings.gold and settings.trajectories:
            told = f"{len(train)} gold and recorded episodes"
        held = f", {len(heldout)} of other tasks held out" if heldout else ""
        console.print(f"  {told}, {sum(t.tokens for t in train) / len(train):.0f} tokens each{held}")
        return samples, kinds_of(train), samples_of(heldout)

    def recorded(self) -> list[Trajectory]:
        """The usable episodes of `sft.trajectories`."""
        from training.sft_data import read_recorded, usable

        settings = self.config.sft
        if not settings.trajectories:
            return []
        evaluated = {task.id for task in [*self.tasks.test, *self.tasks.heldout]} if self.config.evaluate.enabled else set()
        kept, left_out = usable(
            read_recorded(settings.trajectories, self.world),
            max_tokens=self.config.model.max_model_len,
            min_reward=settings.min_reward,
            unseen=evaluated,
        )
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items()) or "none"
        if not kept:
            raise TaudojoError(f"sft.trajectories: no episode can be trained on (left out: {reasons})")
        console.print(f"  {len(kept)} recorded episodes (left out: {reasons})")
        return kept

    def nothing_fits(self) -> TaudojoError:
        """The error of a run whose expert has no room."""
        return TaudojoError(
            f"no episode of the expert on {self.config.env.domain} ends within {self.config.model.max_model_len} tokens and "
            f"{self.config.env.max_steps} turns; raise model.max_model_len or env.max_steps, or set env.prompt=compact"
        )

    def rft(self, stage: str, stop: StopSignal) -> None:
        from training.stages.grpo import Parts
        from training.stages.rft import run_rft

        parts = Parts(self.pool, self.learner, self.sync)
        steps = run_rft(self.config.rft, self.config.seed, self.tasks.rft, parts, self.store, self.folder, self.tracker, stop)
        self.folder.checkpoint("rft", self.learner, {"stage": "rft", "step": steps})

    def note_weight_version(self, version: int) -> None:
        self.folder.state.weight_version = version

    @property
    def trains_before_grpo(self) -> bool:
        return self.config.sft.enabled or self.config.rft.enabled

    def credit(self) -> Callable[[EpisodeRequest, Trajectory], list[float]] | None:
        """What each turn of an episode earned, where `algorithm.credit` asks for it."""
        from rewards.credit import turn_credit

        if self.config.algorithm.credit == "outcome":
            return None
        of_turns = turn_credit(self.config.reward)
        return lambda request, played: of_turns(request.task, played.transcript, self.world.new_env(request), played.reward.total)

    def grpo(self, stage: str, stop: StopSignal) -> None:
        from training.stages.grpo import Parts, begin_optimizer, run_grpo

        config, learner = self.config, self.learner
        resumed = self.folder.state.step > 0
        if config.algorithm.kl_coef > 0:  # the reference is the policy that this stage started from
            start = self.folder.path / (RFT_CHECKPOINT if config.rft.enabled else SFT_CHECKPOINT)
            if not resumed:
                learner.keep_reference()
            elif self.trains_before_grpo:
                ensure_whole(start)
                learner.load(start)
                learner.keep_reference()
                learner.load(self.folder.newest_checkpoint())
        if not resumed:
            begin_optimizer(learner, config.grpo)
        steps = run_grpo(
            self.within_the_run(config.grpo),
            config.algorithm,
            config.seed,
            self.tasks.grpo,
            Parts(self.pool, learner, self.sync, self.credit(), config.rollout),
            self.store,
            self.folder,
            self.tracker,
            stop,
        )
        self.folder.checkpoint(f"grpo-{steps:05d}", learner, {"stage": "grpo", "step": steps})

    def within_the_run(self, settings: GRPOSection) -> GRPOSection:
        """`settings` whose seconds end where the run's own, `seconds`, leave time for one more evaluation and nothing else."""
        if self.config.seconds is None:
            return settings
        state = self.folder.state
        left = self.config.seconds - (time.monotonic() - self.begin) - state.evaluation_seconds + state.stage_seconds
        return settings.model_copy(update={"seconds": max(1.0, min(left, settings.seconds or left))})

    def export(self, stage: str, stop: StopSignal) -> None:
        """`final_model` and, the same files where no adapter was trained, `merged_model`."""
        if self.config.learner.lora.rank:
            self.export_model("merged_model")
            self.export_model("final_model", adapter=True)
            return
        final = self.export_model("final_model")
        merged = self.folder.path / "merged_model"
        shutil.rmtree(merged, ignore_errors=True)
        shutil.copytree(final, merged, copy_function=_link)

    def export_model(self, name: str, adapter: bool = False) -> Path:
        """A Hugging Face folder with weights, tokenizer and chat template; or peft's, with what LoRA trained."""
        from safetensors import SafetensorError
        from transformers import AutoTokenizer

        partial, final = self.folder.path / f".{name}.partial", self.folder.path / name
        shutil.rmtree(partial, ignore_errors=True)
        try:
            (self.learner.export_adapter if adapter else self.learner.export)(partial)
            AutoTokenizer.from_pretrained(self.model_path).save_pretrained(partial)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TaudojoError(
                f"{final} could not be written ({error}); make room and go on with resume={shown(self.folder.path)}"
            ) from error
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        return final

    def export_best(self, stage: str, stop: StopSignal) -> None:
        """`best_model`: the checkpoint of `checkpoints.best`."""
        best = self.folder.best_checkpoint()
        if best is None:
            console.print(f"  no checkpoint was taken where {self.config.checkpoints.best} was measured", soft_wrap=True)
            return
        ensure_whole(best)
        self.learner.load(best)
        self.export_model("best_model")

    def report(self) -> None:
        from rollouts.report import write_report
        from training.summary import print_summary, write_summary

        write_summary(self.folder, self.config, self.source, self.model_path)
        write_report(self.folder.path)
        self.note_total()  # with the report, which shows the total before it
        write_summary(self.folder, self.config, self.source, self.model_path)
        print_summary(self.folder)

    def close(self) -> None:
        self._closers.close()
        import ray

        ray.shutdown()


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target


if __name__ == "__main__":
    sys.exit(main(began=IMPORTED))
