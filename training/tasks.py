"""Which tasks a run sees: official test split, held-out sampler tasks, training tasks. No user is in two of them."""

from __future__ import annotations

from dataclasses import dataclass

from envs.domain import Domain
from envs.errors import TaudojoError
from envs.retail.sampler import KINDS, sample_tasks, task_users
from envs.types import Task
from rewards.audit import without
from training.config import RunConfig

HELDOUT_SEED = 90_001
TRAIN_SEED = 10_007
#: Users of this many held-out tasks are kept out of training, however few of them a run evaluates: runs and studies compare.
HELDOUT_POOL = 240


@dataclass(frozen=True)
class TaskSets:
    """`heldout` never changes with the run's seed, so that runs compare."""

    test: list[Task]
    heldout: list[Task]
    sft: list[Task]
    grpo: list[Task]


def choose_tasks(domain: Domain, config: RunConfig, grpo_tasks: int = 2000) -> TaskSets:
    """Samples everything the run needs. Raises TaudojoError for an unknown kind."""
    for section, kinds in (
        ("evaluate.heldout_kinds", config.evaluate.heldout_kinds),
        ("sft.kinds", config.sft.kinds),
        ("grpo.kinds", config.grpo.kinds),
    ):
        for kind in kinds or ():
            if kind not in KINDS:
                raise TaudojoError(f"{section}: there is no task kind {kind} (have: {', '.join(KINDS)})")
    test = domain.tasks("test")
    test_users = task_users(domain, test)
    pool = sample_tasks(
        domain,
        max(HELDOUT_POOL, config.evaluate.heldout),
        HELDOUT_SEED,
        config.evaluate.heldout_kinds,
        exclude_users=frozenset(test_users),
    )
    heldout = pool[: config.evaluate.heldout]
    unseen = frozenset(test_users | task_users(domain, pool))
    seed = TRAIN_SEED + config.seed
    sft = sample_tasks(domain, config.sft.tasks, seed, config.sft.kinds, exclude_users=unseen)
    if config.sft.official_train:
        sft = [*sft, *(t for t in domain.tasks("train") if not task_users(domain, [t]) & unseen)]
    grpo = sample_tasks(domain, grpo_tasks, seed + 500_000, config.grpo.kinds, exclude_users=unseen)
    sft, grpo = _sound(sft, domain, config, "sft"), _sound(grpo, domain, config, "grpo")
    chosen = test if config.evaluate.test is None else test[: config.evaluate.test]
    return TaskSets(chosen, heldout, sft, grpo)


def _sound(tasks: list[Task], domain: Domain, config: RunConfig, stage: str) -> list[Task]:
    """Training tasks without the faults of `env.exclude_audited`. Evaluation keeps all tasks."""
    sound = without(tasks, domain, config.env.exclude_audited)
    if tasks and not sound:
        reasons = ", ".join(config.env.exclude_audited)
        raise TaudojoError(
            f"env.exclude_audited: no task for {stage} is free of {reasons}; exclude less, or change {stage}.kinds"
        )
    return sound
