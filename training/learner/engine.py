"""What every backend shares: micro-batches of prefix trees, the inputs of a loss, metrics over all ranks, the KL reference.

A backend (`fsdp.py`, `deepspeed.py`) says how parameters are sharded, how a gradient is taken and applied, and how shards
are gathered and stored. One object is one rank. World size 1 and N run the same code; at N the ranks split each batch by
samples and the backend averages the gradients, which the losses undo through `world_size`, so that the result is one rank's.
"""

from __future__ import annotations

import ctypes
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from envs.errors import TaudojoError
from rollouts.engines.base import ADAPTER_METADATA
from training.learner.base import LEAST_MICRO_BATCH_TOKENS, LearnerConfig, LossFn, LossInputs, Sample, torch_dtype
from training.learner.loading import load_model, recurrent
from training.learner.lora import Adapter, Piece, plain_pieces
from training.learner.policy import Policy, loss_positions
from training.learner.randomness import random_state, seed_everything, set_random_state
from training.learner.rowwise import use_rowwise
from training.learner.tree import build_tree, pack

log = logging.getLogger(__name__)

#: A trim takes 0.1 s and what comes next faults the pages in again.
BATCHES_PER_TRIM = 4
#: Beside a checkpoint's shards: who can read them.
KIND = "learner.json"


class LearnerEngine(ABC):
    """One rank of the learner. `dist` must be initialised before (see `group.py`, or `single_process` for one rank).

    `policy` is the module whose parameters are trained, `forward` what computes it (the module, or the backend's wrapper),
    `optimizer` the torch optimizer that holds this rank's moments. `_build` sets all three.
    """

    policy: Policy
    forward: Callable[..., tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = torch.device(config.device)
        self.compute_dtype = torch_dtype(config.dtype)
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # 6% of an update, against a fault we have not
        seed_everything(config.seed)
        model = self._load()
        if self.device.type == "cpu":
            use_rowwise(model)
        self._told_of_the_budget = False
        self.alone = recurrent(model)
        if self.alone:
            log.warning("%s has recurrent layers: every sample is computed by itself, without a tree", type(model).__name__)
        self.adapter = Adapter(model, config.lora) if config.lora else None
        model.train()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._kept: list[Tensor] = []
        self._batches = 0
        self._build(Policy(model, config.logits_chunk))

    def _load(self) -> Any:
        """The model, on the learner's device."""
        return load_model(self.config)

    # -- what a backend is

    @abstractmethod
    def _build(self, policy: Policy) -> None:
        """Shards the policy over the ranks and makes the optimizer."""

    @abstractmethod
    def _backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch, averaged over the ranks, to this rank's shards."""

    @abstractmethod
    def _step(self, lr: float) -> float:
        """Clips the gradients, steps, forgets them. Returns their norm before; where it is not finite there is no step."""

    @abstractmethod
    def _gather(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """The full tensors of sharded parameters, for reading, on every rank. Collective."""

    @abstractmethod
    def _shards(self) -> list[Tensor]:
        """This rank's pieces of the parameters that a forward pass computes with, for reading and writing."""

    @abstractmethod
    def _release(self) -> None:
        """Lets go of full parameters after a forward pass without a backward one."""

    @abstractmethod
    def _save_shards(self, folder: Path) -> None:
        """Trained weights and optimizer. Collective."""

    @abstractmethod
    def _load_shards(self, folder: Path) -> None:
        """Undoes `_save_shards`, at any world size. Collective."""

    # -- forward and backward

    def update(self, batch: Sequence[Sample], loss: LossFn, lr: float, temperature: float = 1.0) -> dict[str, float]:
        """One optimizer step. `batch` is this rank's share; metrics are those of the whole batch, equal on every rank.

        Raises:
            FloatingPointError: the gradient is not finite; weights and optimizer are as they were.
        """
        share_tokens = sum(s.loss_tokens for s in batch)
        share_samples = sum(s.loss_tokens > 0 for s in batch)
        batch_tokens, batch_samples = (int(x) for x in self._all_sum([share_tokens, share_samples]))
        batch_longest = int(self._all_max(max((s.loss_tokens for s in batch), default=0)))
        if batch_tokens == 0:
            raise ValueError("a batch without loss tokens cannot be trained on")
        sums: dict[str, float] = {}
        unique = 0
        for micro in self._micro_batches(batch):
            inputs, tree_tokens = self._forward(micro, batch_tokens, batch_samples, batch_longest, temperature)
            unique += tree_tokens
            outputs = loss(inputs)
            self._backward(outputs.loss)
            self._batches += 1
            if self._batches % BATCHES_PER_TRIM == 0:
                return_free_memory()
            step = {"loss": outputs.loss.detach() / self.world_size}
            step |= outputs.metrics
            step["entropy"] = (inputs.entropy_BT * inputs.mask_BT).sum()
            for name, value in step.items():
                x = float(value)
                sums[name] = max(sums.get(name, x), x) if name.startswith("max/") else sums.get(name, 0.0) + x
        norm = self._step(lr)
        if not np.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm}; the step was not taken. Lower the learning rate.")
        tokens, unique_tokens = self._all_sum([sum(len(s.token_ids) for s in batch), unique])
        metrics = self._reduce(sums, batch_tokens)
        return metrics | {
            "grad_norm": norm,
            "lr": lr,
            "tokens": tokens,
            "unique_tokens": unique_tokens,
            "loss_tokens": float(batch_tokens),
        }

    @torch.no_grad()
    def logprobs(self, batch: Sequence[Sample], temperature: float = 1.0) -> list[list[float]]:
        """Log-probability of each token given those before it; index 0 is 0.0. The loss mask is ignored; there is no dropout."""
        out: list[list[float]] = [[] for _ in batch]
        everything = [Sample(s.token_ids, [True] * len(s.token_ids)) for s in batch]
        self.policy.eval()
        for numbers in self._plan(everything):
            samples = [everything[i] for i in numbers] or [_dummy()]
            rows, _, _ = self._predict(samples, temperature)
            for i, row in zip(numbers, rows, strict=False):
                out[i] = [0.0, *row.tolist()]
        self.policy.train()
        self._release()
        return out

    def _micro_batches(self, batch: Sequence[Sample]) -> Iterator[list[Sample]]:
        """Runs of samples within the token budget; the same number on every rank, filled up with samples without loss."""
        trainable = [s for s in batch if s.loss_tokens > 0]
        for numbers in self._plan(trainable):
            yield [trainable[i] for i in numbers] or [_dummy()]

    def _plan(self, batch: Sequence[Sample]) -> list[list[int]]:
        """The samples of each micro-batch, by number; empty ones at the end, since collectives need every rank equally often."""
        longest = max((len(s.token_ids) for s in batch), default=0)
        budget, share = self.config.micro_batch_tokens or max(LEAST_MICRO_BATCH_TOKENS, 2 * longest), self.config.prefix_tree
        if self.alone:
            budget, share = 1, False
        plan = pack([s.token_ids for s in batch], budget, share)
        if share and len(batch) > 1 and longest > budget and not self._told_of_the_budget:
            self._told_of_the_budget = True
            log.warning(
                "learner.micro_batch_tokens=%d is less than an episode (%d tokens): such episodes are computed one by one and "
                "share no prefix; raise it to %d or more, or leave it null",
                budget,
                longest,
                2 * longest,
            )
        most = int(self._all_max(len(plan)))
        return plan + [[] for _ in range(most - len(plan))]

    def _forward(
        self, samples: list[Sample], batch_tokens: int, batch_samples: int, batch_longest: int, temperature: float
    ) -> tuple[LossInputs, int]:
        logprobs, entropies, unique = self._predict(samples, temperature)
        stand_in = not any(s.loss_tokens for s in samples)

        def rows(read: Callable[[Sample], Sequence[float] | None]) -> Tensor | None:
            if stand_in:  # whatever the other ranks' samples carry, so that all ranks report the same metrics
                return torch.zeros_like(logprobs[0])[None]
            values = [read(s) for s in samples]
            if any(v is None for v in values):
                return None
            picked = [
                torch.tensor(np.asarray(v, np.float32)[1:][np.asarray(s.loss_mask, bool)[1:]])
                for s, v in zip(samples, values, strict=True)
            ]
            return _pad(picked).to(self.device)

        return LossInputs(
            logprobs_BT=_pad(logprobs),
            entropy_BT=_pad(entropies),
            mask_BT=_pad([torch.full_like(x, not stand_in) for x in logprobs]),
            batch_tokens=batch_tokens,
            batch_samples=batch_samples,
            batch_longest=batch_longest,
            world_size=self.world_size,
            advantages_BT=rows(lambda s: s.advantages),
            sampler_logprobs_BT=rows(lambda s: s.sampler_logprobs),
            old_logprobs_BT=rows(lambda s: s.old_logprobs),
            reference_logprobs_BT=rows(lambda s: s.reference_logprobs),
        ), unique

    def _predict(self, samples: list[Sample], temperature: float) -> tuple[list[Tensor], list[Tensor], int]:
        """Per sample: log-probability and entropy `[loss tokens]`; and the number of unique tokens computed."""
        tree = build_tree([s.token_ids for s in samples], share=self.config.prefix_tree)
        predictors, targets, counts = loss_positions(
            tree, [np.asarray(s.loss_mask, bool) for s in samples], [np.asarray(s.token_ids, np.int64) for s in samples]
        )
        # A sample without loss tokens still runs through the model, or this rank would miss a collective.
        empty = len(predictors) == 0
        if empty:
            predictors, targets = np.zeros(1, np.int64), np.zeros(1, np.int64)
        logprob_P, entropy_P = self.forward(
            tree, torch.from_numpy(predictors).to(self.device), torch.from_numpy(targets).to(self.device), temperature
        )
        if empty:
            return [logprob_P * 0.0], [entropy_P * 0.0], 0
        return list(logprob_P.split(counts)), list(entropy_P.split(counts)), len(tree.tokens_U)

    # -- the reference policy

    def keep_reference(self) -> None:
        """The present weights become the reference: a copy in the compute dtype, of this rank's shards.

        With LoRA there is nothing to keep: the reference is the model without its adapter.
        """
        if self.adapter is None:
            self._kept = [shard.detach().to(self.compute_dtype, copy=True) for shard in self._shards()]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within the block the model is the reference policy."""
        if self.adapter is not None:
            with self.adapter.off():
                yield
            return
        present = [shard.detach().clone() for shard in self._shards()]
        self._fill(self._kept)
        try:
            yield
        finally:
            self._fill(present)

    @torch.no_grad()
    def _fill(self, values: Sequence[Tensor]) -> None:
        for shard, value in zip(self._shards(), values, strict=True):
            shard.copy_(value)

    # -- the optimizer

    def reset_optimizer(self) -> None:
        """Forgets the optimizer's moments (a stage that starts from another stage's weights calls this)."""
        self._zero_moments(lambda name: True)

    def forget_momentum(self) -> None:
        """Zeroes Adam's first moments and keeps its second ones, so that the next steps are scaled by the gradients before."""
        self._zero_moments(lambda name: name == "exp_avg")

    @torch.no_grad()
    def _zero_moments(self, chosen: Callable[[str], bool]) -> None:
        for state in self.optimizer.state.values():
            for name, tensor in state.items():
                if chosen(name):
                    tensor.zero_()

    # -- collectives

    def _all_sum(self, values: Sequence[float]) -> list[float]:
        if self.world_size == 1:
            return [float(v) for v in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def _all_max(self, value: float) -> float:
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return float(tensor)

    def _reduce(self, sums: Mapping[str, float], batch_tokens: int) -> dict[str, float]:
        """Token sums → batch means; `loss` is already one; `max/…` stay maxima. Names are equal on every rank."""
        names = sorted(sums)
        totals = dict(zip(names, self._all_sum([sums[n] for n in names]), strict=True))
        return {
            n: self._all_max(sums[n]) if n.startswith("max/") else totals[n] if n == "loss" else totals[n] / batch_tokens
            for n in names
        }

    # -- weights and checkpoints

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor in the compute dtype, on the CPU), tied weights once, an adapter merged in.

        A tensor may share the parameter's memory. Collective: every rank must iterate, and only rank 0 is given anything.
        """
        pieces = self.adapter.merged_pieces() if self.adapter else plain_pieces(self.policy.model)
        for name, full in self._combined(pieces):
            yield name, full.to("cpu", self.compute_dtype)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(peft's name, full float32 tensor, on the CPU) of what LoRA trains. Collective, as `weights` is."""
        assert self.adapter is not None
        for name, full in self._combined(self.adapter.pieces()):
            yield name, full.to("cpu", torch.float32)

    def published(self) -> tuple[Iterator[tuple[str, Tensor]], dict[str, str] | None]:
        """What engines are given, and the metadata that says what it is. Collective: every rank must iterate.

        An adapter goes in the compute dtype, which is what both sides compute with.
        """
        if self.adapter is None or self.adapter.config.sync == "merged":
            return self.weights(), None
        adapter = ((name, full.to(self.compute_dtype)) for name, full in self.adapter_weights())
        return adapter, {ADAPTER_METADATA: self.adapter.description()}

    def _combined(self, pieces: Iterator[Piece]) -> Iterator[tuple[str, Tensor]]:
        """Gathers on every rank and yields on rank 0 alone: a whole model for each rank would not fit into a host's memory."""
        with torch.no_grad():
            for piece in pieces:
                gathered = self._gather(piece.parameters)
                if self.rank == 0:
                    yield piece.name, piece.combine(*gathered)

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Trained weights, optimizer and each rank's random state into `folder`, which exists; rank 0 adds `state.json`.

        Raises:
            OSError: a rank could not write, on a full disk for one.
        """
        self._save_shards(folder / "learner")
        (folder / f"random-{self.rank}.json").write_text(json.dumps(random_state(self.device)))
        if self.rank == 0:
            (folder / KIND).write_text(json.dumps(self._kind(), indent=1))
            (folder / "state.json").write_text(json.dumps(dict(state), indent=1))

    def load(self, folder: Path) -> dict[str, Any]:
        """Restores what `save` wrote, at any world size, and returns its state. A rank that was not there keeps its own seed.

        Raises:
            TaudojoError: another backend wrote it, or one that trained other weights.
        """
        if (folder / KIND).is_file():  # older checkpoints have none
            written, own = json.loads((folder / KIND).read_text()), self._kind()
            if different := [key for key in own if written.get(key) != own[key]]:
                raise TaudojoError(
                    f"the checkpoint {folder} was written with "
                    + ", ".join(f"learner.{key}={written.get(key)} (now {own[key]})" for key in different)
                    + "; use the settings that it was written with, or start from its exported model (model.path)"
                )
        self._load_shards(folder / "learner")
        numbers = folder / f"random-{self.rank}.json"
        if numbers.is_file():
            set_random_state(json.loads(numbers.read_text()), self.device)
        return_free_memory()
        return json.loads((folder / "state.json").read_text())

    def _kind(self) -> dict[str, Any]:
        """What a checkpoint depends on, under the names of the configuration."""
        c = self.config
        lora: dict[str, Any] | None = None
        if c.lora is not None:
            lora = {
                "rank": c.lora.rank,
                "targets": sorted(c.lora.targets),
                "modules_to_save": sorted(c.lora.modules_to_save),
            }
            lora |= {"quantize": c.lora.quantize} if c.lora.quantize else {}
        return {"backend": c.backend, "zero_stage": c.zero_stage if c.backend == "deepspeed" else None, "lora": lora}


def make_optimizer(config: LearnerConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over float32 masters, whatever the backend: its numbers are torch's."""
    return torch.optim.AdamW(parameters, lr=1e-6, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def return_free_memory() -> None:
    """Gives freed heap pages back to the system. Batches of changing sizes leave holes: 80 updates grew a process to 14 GB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def single_process(device: str = "cpu") -> None:
    """Initialises `torch.distributed` for one rank without a network, for scripts and tests without Ray."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", store=dist.HashStore(), rank=0, world_size=1)


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _dummy() -> Sample:
    return Sample([0, 0], [False, False])
