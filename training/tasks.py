"""Which tasks a run sees: the official test split, held-out tasks, training tasks.

With a sampler (retail) held-out and training tasks are made, and no user is in two of the three. Without one (airline, telecom,
mock) they are the official training tasks, every fifth of which is held out: other tasks, not other users, since few official
tasks have users of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from envs.domain import Domain
from envs.errors import TaudojoError
from envs.protocols import Sampler
from envs.types import Task
from rewards.audit import without
from training.config import RunConfig

HELDOUT_SEED = 90_001
TRAIN_SEED = 10_007
#: Users of this many held-out tasks are kept out of training, however few of them a run evaluates: runs and studies compare.
HELDOUT_POOL = 240
#: Of the official training tasks, one in so many is held out where no others can be made.
HELDOUT_EVERY = 5


@dataclass(frozen=True)
class TaskSets:
    """`heldout` never changes with the run's seed, so that runs compare."""

    test: list[Task]
    heldout: list[Task]
    sft: list[Task]
    grpo: list[Task]
    rft: list[Task] = field(default_factory=list)


def choose_tasks(domain: Domain, config: RunConfig, grpo_tasks: int = 2000) -> TaskSets:
    """Everything the run needs. Raises TaudojoError for an unknown kind, or where no task is left to train on."""
    sampler = domain.sampler
    check_kinds(config, domain.name, sampler.KINDS if sampler else ())
    sets = _sampled(domain, sampler, config, grpo_tasks) if sampler else _official(domain, config, grpo_tasks)
    return TaskSets(
        sets.test if config.evaluate.test is None else sets.test[: config.evaluate.test],
        sets.heldout,
        _sound(sets.sft, domain, config, "sft"),
        _sound(sets.grpo, domain, config, "grpo"),
        _sound(sets.rft, domain, config, "rft"),
    )


def check_kinds(config: RunConfig, domain: str, known: tuple[str, ...]) -> None:
    """Raises TaudojoError for a task kind that the domain does not have."""
    for section, kinds in (
        ("evaluate.heldout_kinds", config.evaluate.heldout_kinds),
        ("sft.kinds", config.sft.kinds),
        ("rft.kinds", config.rft.kinds),
        ("grpo.kinds", config.grpo.kinds),
    ):
        for kind in kinds or ():
            if not known:
                raise TaudojoError(f"{section}: the tasks of {domain} have no kinds; set {section}=null")
            if kind not in known:
                raise TaudojoError(f"{section}: there is no task kind {kind} (have: {', '.join(known)})")


def _sampled(domain: Domain, sampler: Sampler, config: RunConfig, grpo_tasks: int) -> TaskSets:
    test = domain.tasks("test")
    test_users = sampler.task_users(domain, test)
    pool = sampler.sample_tasks(
        domain,
        max(HELDOUT_POOL, config.evaluate.heldout),
        HELDOUT_SEED,
        config.evaluate.heldout_kinds,
        exclude_users=frozenset(test_users),
    )
    unseen = frozenset(test_users | sampler.task_users(domain, pool))
    seed = TRAIN_SEED + config.seed
    sft = sampler.sample_tasks(domain, config.sft.tasks, seed, config.sft.kinds, exclude_users=unseen)
    if config.sft.official_train:
        sft = [*sft, *(t for t in domain.tasks("train") if not sampler.task_users(domain, [t]) & unseen)]
    grpo = sampler.sample_tasks(domain, grpo_tasks, seed + 500_000, config.grpo.kinds, exclude_users=unseen)
    rft: list[Task] = []
    if config.rft.enabled:
        number = config.rft.rounds * config.rft.tasks_per_round
        rft = sampler.sample_tasks(domain, number, seed + 250_000, config.rft.kinds, exclude_users=unseen)
    return TaskSets(test, pool[: config.evaluate.heldout], sft, grpo, rft)


def _official(domain: Domain, config: RunConfig, grpo_tasks: int) -> TaskSets:
    """Mock has one split only: all its tasks train, and none are left to test."""
    if config.sft.enabled and config.sft.gold and not config.sft.official_train:
        raise TaudojoError(f"sft.official_train=false: {domain.name} has no other tasks to train on; set it to true")
    test = domain.tasks("test") if "test" in domain.splits else []
    tasks = domain.tasks("train" if "train" in domain.splits else "base")
    train = [task for number, task in enumerate(tasks) if number % HELDOUT_EVERY]
    return TaskSets(test, tasks[::HELDOUT_EVERY][: config.evaluate.heldout], train[: config.sft.tasks], train[:grpo_tasks], train)


def _sound(tasks: list[Task], domain: Domain, config: RunConfig, stage: str) -> list[Task]:
    """Training tasks without the faults of `env.exclude_audited`. Evaluation keeps all tasks."""
    sound = without(tasks, domain, config.env.exclude_audited)
    if tasks and not sound:
        reasons = ", ".join(config.env.exclude_audited)
        raise TaudojoError(
            f"env.exclude_audited: no task for {stage} is free of {reasons}; exclude less, or change {stage}.kinds"
        )
    return sound
