"""The FSDP2 learner: torch `fully_shard`, bf16 compute over fp32 masters, prefix-tree batches. CPU (gloo) and GPU (NCCL).

One object is one rank. World size 1 and N run the same code; at N the ranks split each batch by samples and FSDP
averages the gradients, which the losses undo through `world_size` so that the result is that of one rank.
"""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from training.learner import attention
from training.learner.base import LearnerConfig, LossFn, LossInputs, Sample, torch_dtype
from training.learner.policy import Policy, loss_positions
from training.learner.tree import build_tree, pack

#: A trim takes 0.1 s and what comes next faults the pages in again.
BATCHES_PER_TRIM = 4


class FSDPLearner:
    """One rank of the learner. `dist` must be initialised before (see `group.py`, or `single_process` for one rank)."""

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = torch.device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        seed_everything(config.seed)
        attention.register()
        model = AutoModelForCausalLM.from_pretrained(
            config.model_path, dtype=torch.float32, attn_implementation=attention.NAME, low_cpu_mem_usage=True
        ).to(self.device)
        model.train()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.compute_dtype = torch_dtype(config.dtype)
        self.policy = self._shard(Policy(model, config.logits_chunk, config.temperature))
        self._kept: list[Tensor] = []
        self._batches = 0
        self.reset_optimizer()

    def _shard(self, policy: Policy) -> Policy:
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        precision = MixedPrecisionPolicy(param_dtype=self.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for layer in policy.model.base_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=self.world_size > 1)
        return fully_shard(policy, mesh=mesh, mp_policy=precision, reshard_after_forward=False)

    def reset_optimizer(self) -> None:
        """Forgets the optimizer's moments (a stage that starts from another stage's weights calls this)."""
        c = self.config
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=1e-6, betas=c.betas, weight_decay=c.weight_decay, fused=True
        )

    def forget_momentum(self) -> None:
        """Zeroes Adam's first moments and keeps its second ones, so that the next steps are scaled by the gradients before."""
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()

    # -- forward and backward

    def update(self, batch: Sequence[Sample], loss: LossFn, lr: float) -> dict[str, float]:
        """One optimizer step. `batch` is this rank's share; metrics are those of the whole batch, equal on every rank."""
        share_tokens = sum(s.loss_tokens for s in batch)
        share_samples = sum(s.loss_tokens > 0 for s in batch)
        batch_tokens, batch_samples = (int(x) for x in self._all_sum([share_tokens, share_samples]))
        if batch_tokens == 0:
            raise ValueError("a batch without loss tokens cannot be trained on")
        sums: dict[str, float] = {}
        unique = 0
        for micro in self._micro_batches(batch):
            inputs, tree_tokens = self._forward(micro, batch_tokens, batch_samples)
            unique += tree_tokens
            outputs = loss(inputs)
            outputs.loss.backward()
            self._batches += 1
            if self._batches % BATCHES_PER_TRIM == 0:
                return_free_memory()
            step = {"loss": outputs.loss.detach() / self.world_size}
            step |= outputs.metrics
            step["entropy"] = (inputs.entropy_BT * inputs.mask_BT).sum()
            for name, value in step.items():
                x = float(value)
                sums[name] = max(sums.get(name, x), x) if name.startswith("max/") else sums.get(name, 0.0) + x
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        norm = float(grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm)
        if not np.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(f"the gradient norm is {norm}; the step was not taken. Lower the learning rate.")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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
    def logprobs(self, batch: Sequence[Sample]) -> list[list[float]]:
        """Log-probability of each token given those before it; index 0 is 0.0. The loss mask is ignored."""
        out: list[list[float]] = [[] for _ in batch]
        everything = [Sample(s.token_ids, [True] * len(s.token_ids)) for s in batch]
        plan = pack([s.token_ids for s in everything], self.config.micro_batch_tokens, self.config.prefix_tree)
        for numbers in self._equalised(plan):
            samples = [everything[i] for i in numbers] or [_dummy()]
            rows, _, _ = self._predict(samples)
            for i, row in zip(numbers, rows, strict=False):
                out[i] = [0.0, *row.tolist()]
        self._reshard()
        return out

    def _reshard(self) -> None:
        """A forward pass without a backward one leaves the gathered parameters in place; checkpoints need the shards."""
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def keep_reference(self) -> None:
        """Copies the present weights (in the compute dtype, this rank's shards) as the reference policy."""
        self._kept = [_local(p).detach().to(self.compute_dtype, copy=True) for p in self.policy.parameters()]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within the block the model is the reference policy."""
        present = [_local(p).detach().clone() for p in self.policy.parameters()]
        self._fill(self._kept)
        try:
            yield
        finally:
            self._fill(present)

    @torch.no_grad()
    def _fill(self, shards: Sequence[Tensor]) -> None:
        for parameter, shard in zip(self.policy.parameters(), shards, strict=True):
            _local(parameter).copy_(shard)

    def _micro_batches(self, batch: Sequence[Sample]) -> Iterator[list[Sample]]:
        """Runs of samples within the token budget; the same number on every rank, filled up with samples without loss."""
        trainable = [s for s in batch if s.loss_tokens > 0]
        plan = pack([s.token_ids for s in trainable], self.config.micro_batch_tokens, self.config.prefix_tree)
        for numbers in self._equalised(plan):
            yield [trainable[i] for i in numbers] or [_dummy()]

    def _equalised(self, plan: list[list[int]]) -> list[list[int]]:
        """FSDP's collectives need every rank to run equally often."""
        most = int(self._all_max(len(plan)))
        return plan + [[] for _ in range(most - len(plan))]

    def _forward(self, samples: list[Sample], batch_tokens: int, batch_samples: int) -> tuple[LossInputs, int]:
        logprobs, entropies, unique = self._predict(samples)
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
            world_size=self.world_size,
            advantages_BT=rows(lambda s: s.advantages),
            sampler_logprobs_BT=rows(lambda s: s.sampler_logprobs),
            old_logprobs_BT=rows(lambda s: s.old_logprobs),
            reference_logprobs_BT=rows(lambda s: s.reference_logprobs),
        ), unique

    def _predict(self, samples: list[Sample]) -> tuple[list[Tensor], list[Tensor], int]:
        """Per sample: log-probability and entropy `[loss tokens]`; and the number of unique tokens computed."""
        tree = build_tree([s.token_ids for s in samples], share=self.config.prefix_tree)
        predictors, targets, counts = loss_positions(
            tree, [np.asarray(s.loss_mask, bool) for s in samples], [np.asarray(s.token_ids, np.int64) for s in samples]
        )
        # A sample without loss tokens still runs through the model, or this rank would miss a collective.
        empty = len(predictors) == 0
        if empty:
            predictors, targets = np.zeros(1, np.int64), np.zeros(1, np.int64)
        logprob_P, entropy_P = self.policy(
            tree, torch.from_numpy(predictors).to(self.device), torch.from_numpy(targets).to(self.device)
        )
        if empty:
            return [logprob_P * 0.0], [entropy_P * 0.0], 0
        return list(logprob_P.split(counts)), list(entropy_P.split(counts)), len(tree.tokens_U)

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
        """(Hugging Face name, full tensor in the compute dtype, on the CPU). Collective: every rank must iterate."""
        tied = set(getattr(self.policy.model, "_tied_weights_keys", None) or ()) if self._tied else set()
        for name, parameter in self.policy.model.named_parameters():
            if name in tied:
                continue
            tensor = parameter.detach()
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, full.to("cpu", self.compute_dtype)

    @property
    def _tied(self) -> bool:
        return bool(self.policy.model.config.tie_word_embeddings)

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Model and optimizer shards (torch DCP) and each rank's random state into `folder`, which exists; rank 0 adds
        `state.json`.

        Raises:
            OSError: a rank could not write, on a full disk for one.
        """
        model, optimizer = get_state_dict(self.policy, self.optimizer)
        try:
            dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=str(folder / "learner"))
        except CheckpointException as error:  # a BaseException: no handler of errors would see it
            rank, (cause, _) = next(iter(error.failures.items()))
            raise OSError(f"rank {rank}: {cause}") from error
        (folder / f"random-{self.rank}.json").write_text(json.dumps(random_state(self.device)))
        if self.rank == 0:
            (folder / "state.json").write_text(json.dumps(dict(state), indent=1))

    def load(self, folder: Path) -> dict[str, Any]:
        """Restores what `save` wrote, at any world size, and returns its state. A rank that was not there keeps its own seed."""
        model, optimizer = get_state_dict(self.policy, self.optimizer)
        holder = {"model": model, "optimizer": optimizer}
        dcp.load(holder, checkpoint_id=str(folder / "learner"))
        set_state_dict(self.policy, self.optimizer, model_state_dict=holder["model"], optim_state_dict=holder["optimizer"])
        numbers = folder / f"random-{self.rank}.json"
        if numbers.is_file():
            set_random_state(json.loads(numbers.read_text()), self.device)
        del model, optimizer, holder
        return_free_memory()
        return json.loads((folder / "state.json").read_text())


def return_free_memory() -> None:
    """Gives freed heap pages back to the system. Batches of changing sizes leave holes: 80 updates grew a process to 14 GB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _dummy() -> Sample:
    return Sample([0, 0], [False, False])


def seed_everything(seed: int) -> None:
    """Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the random numbers of Python, numpy and torch stand, as JSON."""
    version, numbers, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(key).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Undoes `random_state`."""

    def bits(text: str) -> Tensor:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(bits(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(bits(state["cuda"]), device)


def single_process(device: str = "cpu") -> None:
    """Initialises `torch.distributed` for one rank without a network, for scripts and tests without Ray."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", store=dist.HashStore(), rank=0, world_size=1)
