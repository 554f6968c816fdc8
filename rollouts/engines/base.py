"""What an inference engine must do: four verbs, token ids in and out.

    generation = await engine.generate(prompt_ids, SamplingParams(max_tokens=200, stop_token_ids=(2,)))
    generation.token_ids, generation.logprobs

Implementations: `vllm` (training and evaluation), `fake` (scripted tokens, for tests and scale benchmarks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

#: Metadata of a safetensors file whose tensors are a LoRA adapter in peft's names: its configuration as JSON.
ADAPTER_METADATA = "adapter_config"


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `seed` makes one request repeatable; `temperature` 0 is greedy.

    priority: In a busy engine's queue the lowest goes first, equal ones in the order in which they came.
    exact: Write `max_tokens` tokens whatever they are; for measurements.
    grammar: What may be written, as `rollouts.structured` says; the engine must have been started with `structured`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    priority: int = 0
    exact: bool = False
    grammar: str | None = None


@dataclass(frozen=True)
class Generation:
    """Sampled tokens (the stop token included) with the log-probability that each was sampled with.

    weight_version: Of the weights that the first token was sampled with.
    swaps: `(tokens, version)` where the weights changed in the middle: how many had been sampled, and the version from there on.
    cached_tokens: Tokens of the prompt whose keys and values were found in the prefix cache.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]
    weight_version: int = 0
    cached_tokens: int = 0
    swaps: tuple[tuple[int, int], ...] = ()

    @property
    def versions(self) -> list[tuple[int, int, int]]:
        """`(start, stop, weight version)` of each span of the sampled tokens, without empty ones."""
        starts = [(0, self.weight_version), *self.swaps]
        stops = [*(tokens for tokens, _ in self.swaps), len(self.token_ids)]
        return [(start, stop, version) for (start, version), stop in zip(starts, stops, strict=True) if start < stop]


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine. Sizes in GiB, lengths in tokens."""

    model_path: str
    dtype: str = "bfloat16"
    max_model_len: int = 4096
    max_num_seqs: int = 64
    max_batched_tokens: int = 4096
    kv_cache_gib: float = 2.0
    gpu_memory_utilization: float = 0.45
    compile: bool = False
    tensor_parallel_size: int = 1
    cores: int | None = None  # CPU only: cores this engine may use; None = all that the process may use
    seed: int = 0
    structured: bool = False  # can obey `SamplingParams.grammar`
    lora_rank: int | None = None  # adapters of at most this rank are loaded, over weights that stay as they are
    seeded: bool = False  # honour `SamplingParams.seed` (slower sampling on a CPU); False: one generator for the engine


class EngineFailed(RuntimeError):
    """The engine cannot go on; episodes in flight may be played again on another one."""


class Engine(Protocol):
    weight_version: int

    async def generate(self, token_ids: Sequence[int], params: SamplingParams) -> Generation: ...

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of every token given those before it; index 0 is 0.0. For the weight-sync probe."""

    async def load_weights(self, file: str, version: int) -> None:
        """Replaces the weights by those in a safetensors file (Hugging Face names) and forgets all keys and values.

        What is being generated stands still meanwhile, keeps its tokens, and goes on with the new weights. With
        `EngineConfig.lora_rank` the file is an adapter (`ADAPTER_METADATA`), and replaces the one before.
        """

    def held(self) -> int:
        """How many requests have reached the engine and are not answered."""

    async def pause(self) -> None:
        """Generation stands still; requests are accepted and wait until `resume`."""

    async def resume(self) -> None: ...

    async def close(self) -> None: ...
