"""The learner's protocol and the records that go in and out of it.

A backend holds one rank's share of the model and optimizer. Stages talk to it (through `LearnerGroup`) in whole
batches; they never see tensors. The hook a reader will write is `LossFn`: pure tensors in, loss and metrics out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One trajectory, ready to train on. All lists have one entry per token.

    `loss_mask[t]` is true where token t was written by the policy. `advantages` and `sampler_logprobs` are only read
    where the mask is true; SFT leaves them None.
    """

    token_ids: Sequence[int]
    loss_mask: Sequence[bool]
    advantages: Sequence[float] | None = None
    sampler_logprobs: Sequence[float] | None = None
    old_logprobs: Sequence[float] | None = None  # the learner's own, before the first of several updates; None = on-policy
    reference_logprobs: Sequence[float] | None = None

    @property
    def loss_tokens(self) -> int:
        """Tokens that are trained on; the first token has no prediction and never counts."""
        return sum(map(bool, self.loss_mask[1:]))


@dataclass(frozen=True)
class LossInputs:
    """What a loss may look at: one row per sample, one column per loss token, padded on the right.

    Shapes are `[samples, tokens]`. `batch_tokens`, `batch_samples`, `batch_longest` (the most loss tokens of a sample) and
    `world_size` describe the whole batch over all ranks and micro-batches, so that the sum of micro-batch losses is the loss of
    the batch.
    """

    logprobs_BT: Tensor
    mask_BT: Tensor
    entropy_BT: Tensor
    batch_tokens: int
    batch_samples: int
    batch_longest: int
    world_size: int
    advantages_BT: Tensor | None = None
    sampler_logprobs_BT: Tensor | None = None
    old_logprobs_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None


@dataclass(frozen=True)
class LossOutputs:
    """`loss` is a scalar already scaled for the whole batch; each metric is a token sum and is divided by `batch_tokens`,
    except those named `max/…`, of which the greatest is kept."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


#: Of every learner process: large buffers stay with it instead of being returned and faulted in again each step.
HEAP_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2 << 30)}

#: The greatest that vLLM has kernels for.
MAX_ADAPTER_RANK = 512

LossFn = Callable[[LossInputs], LossOutputs]


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): W + `alpha`/`rank` · B A on the linear layers that end in one of `targets`.

    `modules_to_save` are modules that are trained whole and stored with the adapter. `sync` is what engines are given: the
    adapter alone, or the model with the adapter in its weights. `quantize` keeps the frozen linear layers in 4 bits (QLoRA).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    modules_to_save: tuple[str, ...] = ()
    sync: Literal["adapter", "merged"] = "merged"
    quantize: Literal["4bit"] | None = None


def why_merged(rank: int, modules_to_save: Sequence[str], quantize: str | None) -> str | None:
    """Why engines cannot be given an adapter alone; None where they can."""
    if modules_to_save:
        return "vLLM loads no adapter with modules_to_save"
    if rank > MAX_ADAPTER_RANK:
        return f"vLLM loads no adapter of a rank above {MAX_ADAPTER_RANK}"
    if quantize is not None:
        return "an adapter over 4-bit weights belongs to those, and the engine has the model's own"
    return None


#: Unique tokens of a micro-batch where nobody says how many; more where two of the longest samples would not fit, and not share.
LEAST_MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class LearnerConfig:
    """One rank's settings. `zero_stage` is DeepSpeed's; `lora` None trains all weights.

    `offload_parameters` keeps parameters, gradients and optimizer in the host's memory between their uses;
    `offload_optimizer` (DeepSpeed) only the optimizer.
    """

    model_path: str
    backend: Literal["fsdp", "deepspeed"] = "fsdp"
    dtype: str = "bfloat16"  # of parameters in the forward and backward pass; masters and optimizer are float32
    device: str = "cpu"
    micro_batch_tokens: int | None = None  # unique tokens computed at once; None: the least, or twice the longest sample
    logits_chunk: int = 512  # rows of logits in memory at once
    prefix_tree: bool = True
    gradient_checkpointing: bool = False
    liger: bool = False  # Liger's kernels, on a GPU
    lora: LoRAConfig | None = None
    zero_stage: Literal[2, 3] = 3
    offload_optimizer: bool = False
    offload_parameters: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    threads: int | None = None
    seed: int = 0
    deterministic: bool = False


class Learner(Protocol):
    """One rank. `group.LearnerGroup` offers the same verbs over all ranks."""

    def update(self, batch: Sequence[Sample], loss: LossFn, lr: float, temperature: float = 1.0) -> dict[str, float]:
        """One optimizer step over `batch` (this rank's share). Returns metrics of the whole batch.

        The loss sees log-probabilities under softmax(logits / `temperature`): that of the sampler, where it samples.
        """

    def logprobs(self, batch: Sequence[Sample], temperature: float = 1.0) -> list[list[float]]:
        """Log-probability of every token given those before it (index 0 is 0.0), for each sample."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under their Hugging Face names, in the training dtype; tied weights once. Only rank 0 is given any."""

    def save(self, folder: Path, state: Mapping[str, Any]) -> None: ...

    def load(self, folder: Path) -> dict[str, Any]: ...


def torch_dtype(name: str) -> torch.dtype:
    """`"bfloat16"` → `torch.bfloat16`."""
    return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}[name]
