"""A played episode with its tokens: what the store keeps, the learner trains on, and the report shows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from envs.types import Task, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.metrics import EpisodeMetrics

SCHEMA = 1


@dataclass(frozen=True)
class TokenSegment:
    """A run of tokens that the policy saw as one context. The first three have one entry per token, and become arrays whatever
    sequences are given: a list of numbers takes six times the memory, six times as long to cross a process border, and garbage
    collection walks through it again and again.

    `loss_mask` is 1 on the policy's own tokens; `logprobs` are those they were sampled with, 0.0 elsewhere.
    `versions` holds `(start, stop, weight version)` for each sampled span; a turn in which weights were swapped has several.

    Such a mixture needs no further care. An engine that swaps computes the whole context anew, so a token's log-prob is that of
    one policy, its span's, given all the tokens before it, whoever wrote them. Truncated importance sampling (training/loss.py)
    compares just that number with the learner's for the same token and context, one token at a time; it never asks for a version.
    """

    token_ids: array[int]
    loss_mask: array[int]
    logprobs: array[float]
    versions: list[tuple[int, int, int]]

    def __post_init__(self) -> None:
        for name, code in (("token_ids", "i"), ("loss_mask", "b"), ("logprobs", "d")):
            if not isinstance(given := getattr(self, name), array):
                object.__setattr__(self, name, array(code, given))

    @property
    def sampled(self) -> int:
        return self.loss_mask.count(1)

    @property
    def turns(self) -> list[tuple[int, int]]:
        """`(start, stop)` of each turn of the policy. Spans that touch are one turn, unless their version is the same."""
        turns: list[tuple[int, int]] = []
        before = -1
        for start, stop, version in self.versions:
            if turns and turns[-1][1] == start and version != before:
                turns[-1] = (turns[-1][0], stop)
            else:
                turns.append((start, stop))
            before = version
        return turns


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to play. `group` numbers the GRPO group within a step.

    index: Its number within the step, under which it is stored; None is its place among those that are played with it.
    policy: Who speaks. `engine`; `gold`, the expert; `paced`, the expert, who takes the engine's time for its words; `none`,
        nobody: the episode could not be played and ends as ENGINE_ERROR.
    expected_tokens: How many tokens the policy will write, where something is known about it.
    last_wave: False while more episodes wait than can be played at once; the scheduler tells.
    """

    task: Task
    seed: int
    stage: str
    step: int = 0
    group: int = 0
    temperature: float = 1.0
    policy: Literal["engine", "gold", "paced", "none"] = "engine"
    expected_tokens: float | None = None
    index: int | None = None
    last_wave: bool = True


@dataclass(frozen=True)
class Trajectory:
    """One segment, unless the chat template cannot grow (`ChatFormat.splits`): then one for each turn."""

    transcript: Transcript
    kind: str
    segments: list[TokenSegment]
    reward: RewardBreakdown
    metrics: EpisodeMetrics
    stage: str
    step: int
    group: int
    seed: int
    seconds: float = 0.0
    cached_tokens: int = 0
    worker: int = 0  # who played it: the workers of a run are numbered in the order in which they were started
    attempts: int = 1  # how often it was begun; more than once where a worker died
    timings: Mapping[str, float] = field(default_factory=dict)
    #: Where a language model played the customer: `answers`, `retries`, `prompt_tokens`, `completion_tokens`, `cost_usd`.
    user_usage: Mapping[str, float] = field(default_factory=dict)
    #: Its one segment holds past turns as they were sampled, where the chat template would rewrite them (`ChatFormat.departs`).
    departs: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.segments)

    @property
    def sampled_tokens(self) -> int:
        return sum(s.sampled for s in self.segments)

    @property
    def tokens_by_version(self) -> dict[int, int]:
        """Weight version → how many tokens were sampled with it."""
        tokens: dict[int, int] = {}
        for start, stop, version in (span for s in self.segments for span in s.versions):
            tokens[version] = tokens.get(version, 0) + stop - start
        return tokens

    def to_json(self) -> dict[str, Any]:
        """One line of `trajectories/*.jsonl`."""
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            "step": self.step,
            "group": self.group,
            "seed": self.seed,
            "kind": self.kind,
            **self.transcript.to_json(),
            "reward": self.reward.to_json(),
            "metrics": self.metrics.to_json(),
            "tokens": {
                "prompt": self.segments[0].loss_mask.index(1) if any(self.segments[0].loss_mask) else self.tokens,
                "sampled": self.sampled_tokens,
                "total": self.tokens,
                "cached": self.cached_tokens,
            },
            "worker": self.worker,
            "attempts": self.attempts,
            "seconds": round(self.seconds, 3),
            "timings": {k: round(v, 4) for k, v in self.timings.items()},
            **({"user_usage": dict(self.user_usage)} if self.user_usage else {}),
            **({"departs_from_template": True} if self.departs else {}),
            "segments": [
                {
                    "token_ids": s.token_ids.tolist(),
                    "loss_mask": s.loss_mask.tolist(),
                    "logprobs": [round(x, 6) for x in s.logprobs],
                    "versions": s.versions,
                }
                for s in self.segments
            ],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Trajectory:
        if raw.get("schema") != SCHEMA:
            raise ValueError(f"trajectory schema {raw.get('schema')} is not {SCHEMA}; it was written by another version")
        return cls(
            transcript=Transcript.from_json(raw),
            kind=raw["kind"],
            segments=[
                TokenSegment(
                    array("i", s["token_ids"]),
                    array("b", map(bool, s["loss_mask"])),
                    array("d", s["logprobs"]),
                    [(a, b, v) for a, b, v in s["versions"]],
                )
                for s in raw["segments"]
            ],
            reward=RewardBreakdown.from_json(raw["reward"]),
            metrics=EpisodeMetrics.from_json(raw["metrics"]),
            stage=raw["stage"],
            step=raw["step"],
            group=raw["group"],
            seed=raw["seed"],
            seconds=raw["seconds"],
            cached_tokens=raw["tokens"]["cached"],
            worker=raw.get("worker", 0),
            attempts=raw.get("attempts", 1),
            timings=raw["timings"],
            user_usage=raw.get("user_usage", {}),
            departs=raw.get("departs_from_template", False),
        )


def user_usage(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    """What the customers of these episodes used together, as `user/…` for logging; empty without language models."""
    total: dict[str, float] = {}
    for trajectory in trajectories:
        for name, used in trajectory.user_usage.items():
            total[f"user/{name}"] = total.get(f"user/{name}", 0.0) + used
    return total
