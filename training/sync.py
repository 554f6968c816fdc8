"""Weight sync, proven: learner → engines, then the same prompt's log-probs on both sides.

A sync that returns without an error proves nothing (tied heads stay stale, adapters never arrive); log-probs do. In float32 the
two sides agree to 1e-3; in bfloat16 each side rounds on its own, so the mean over several hundred tokens is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.errors import TaudojoError
from rollouts.scheduler import RolloutPool
from training.learner.base import Sample
from training.learner.group import LearnerGroup

#: Greatest mean |Δ log-prob| over the probe's tokens that rounding explains (measured: fp32 4e-5, bf16 0.05).
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.12, "float16": 0.05}


@dataclass(frozen=True)
class SyncReport:
    """Seconds of the transfer and of the probe, and the differences in log-probability over the probe's tokens.

    `mib`: how much was given to each engine.
    """

    version: int
    transfer_s: float
    probe_s: float
    mean_gap: float
    max_gap: float
    mib: float = 0.0

    def metrics(self) -> dict[str, float]:
        return {
            "sync/transfer_s": self.transfer_s,
            "sync/probe_s": self.probe_s,
            "sync/mean_gap": self.mean_gap,
            "sync/max_gap": self.max_gap,
            "sync/mib": self.mib,
        }


class WeightSync:
    """Holds the probe prompts and the version counter.

    version: Of the last weights that the run's engines were given before. note: Hears of each new one.
    """

    def __init__(
        self,
        learner: LearnerGroup,
        pool: RolloutPool,
        prompts: Sequence[Sequence[int]],
        dtype: str,
        version: int = 0,
        note: Callable[[int], None] = lambda version: None,
    ) -> None:
        self._learner, self._pool, self._prompts = learner, pool, [list(p) for p in prompts]
        self._tolerance = TOLERANCE[dtype]
        pool.weights_source = learner.publish  # for a worker that is rebuilt while the learner waits for its episodes
        self.version, self._note = version, note

    def run(self) -> SyncReport:
        """Publishes the learner's weights, or its adapter, to every engine and proves their arrival.

        Raises:
            TaudojoError: an engine's log-probs are not the learner's.
        """
        begin = time.monotonic()
        self.version += 1
        self._note(self.version)
        reference = self._learner.publish()
        self._pool.load_weights(reference, self.version)
        del reference  # frees a copy of the model in shared memory
        transferred = time.monotonic()
        mean, greatest = self.probe()
        mib = self._learner.published_bytes / 2**20
        return SyncReport(self.version, transferred - begin, time.monotonic() - transferred, mean, greatest, mib)

    def probe(self) -> tuple[float, float]:
        """Mean and greatest |Δ log-prob| of the worst engine; raises as `run` does."""
        expected = self._learner.logprobs([Sample(p, [True] * len(p)) for p in self._prompts])
        worst = (0.0, 0.0)
        for number, scores in enumerate(self._pool.score(self._prompts)):
            gap = np.abs(np.concatenate([np.subtract(a[1:], b[1:]) for a, b in zip(scores, expected, strict=True)]))
            mean, greatest = float(gap.mean()), float(gap.max())
            if not mean <= self._tolerance:
                raise TaudojoError(
                    f"weight sync {self.version}: rollout worker {number} does not have the learner's weights "
                    f"(mean |Δ log-prob| {mean:.4f} on {gap.size} probe tokens, tolerance {self._tolerance}); "
                    "the run was stopped before it sampled from stale weights"
                )
            worst = max(worst, (mean, greatest))
        return worst


class NoEngines(WeightSync):
    """The sync of a run in which nothing is played: there is nobody to give weights to."""

    def __init__(self) -> None:
        self.version = 0

    def run(self) -> SyncReport:
        return SyncReport(self.version, 0.0, 0.0, 0.0, 0.0)
