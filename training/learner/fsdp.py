"""The FSDP2 backend: torch `fully_shard`, compute in the configured dtype over float32 masters. CPU (gloo) and GPU (NCCL).

Checkpoints are torch's distributed format (DCP), which any world size reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from training.learner.engine import LearnerEngine, make_optimizer
from training.learner.loading import load_model, quantized, receive
from training.learner.lora import is_four_bits
from training.learner.policy import Policy


class FSDPLearner(LearnerEngine):
    """One rank under FSDP2."""

    @property
    def _hands_on(self) -> bool:
        """Whether rank 0 gives the others their shards. Weights in 4 bits are not sharded: each rank makes its own."""
        return self.world_size > 1 and not quantized(self.config)

    def _load(self) -> Any:
        if not self._hands_on:
            return load_model(self.config, device="cpu" if self.config.offload_parameters else None)
        return load_model(self.config, whole=self.rank == 0, device="cpu")

    def _build(self, policy: Policy) -> None:
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        precision = MixedPrecisionPolicy(param_dtype=self.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.config.offload_parameters else OffloadPolicy()
        whole = {p for p in policy.parameters() if is_four_bits(p)}

        def shard(module: nn.Module, reshard_after_forward: bool) -> Any:
            if self._hands_on:
                receive(module, self.device, self.compute_dtype)
            return fully_shard(
                module,
                mesh=mesh,
                mp_policy=precision,
                offload_policy=offload,
                reshard_after_forward=reshard_after_forward,
                ignored_params=whole,
            )

        # One rank shards nothing, but layers that come from the host's memory would pile up on its GPU.
        reshard = self.world_size > 1 or self.config.offload_parameters
        for layer in policy.model.base_model.layers:
            shard(layer, reshard_after_forward=reshard)
        self.policy = shard(policy, reshard_after_forward=False)
        self.forward = self.policy
        self.optimizer = make_optimizer(self.config, self._trained())

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.policy.parameters() if p.requires_grad]

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _step(self, lr: float) -> float:
        total = nn.utils.clip_grad_norm_(self._trained(), self.config.max_grad_norm)
        norm = float(total.to(self.device).full_tensor() if isinstance(total, DTensor) else total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if norm < float("inf"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _gather(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        # An offloaded shard has to be where the collective is.
        return [p.detach().to(self.device).full_tensor() if isinstance(p, DTensor) else p.detach() for p in parameters]

    def _shards(self) -> list[Tensor]:
        return [p.to_local() if isinstance(p, DTensor) else p for p in self.policy.parameters()]

    def _release(self) -> None:
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _save_shards(self, folder: Path) -> None:
        try:
            dcp.save(self._state(), checkpoint_id=str(folder))
        except CheckpointException as error:  # a BaseException: no handler of errors would see it
            rank, (cause, _) = next(iter(error.failures.items()))
            raise OSError(f"rank {rank}: {cause}") from error

    def _load_shards(self, folder: Path) -> None:
        holder = self._state()
        dcp.load(holder, checkpoint_id=str(folder))
        set_state_dict(
            self.policy,
            self.optimizer,
            model_state_dict=holder["model"],
            optim_state_dict=holder["optimizer"],
            options=StateDictOptions(strict=self.adapter is None),
        )

    def _state(self) -> dict[str, Any]:
        """What is trained: a frozen weight is in the base model's own file."""
        model, optimizer = get_state_dict(self.policy, self.optimizer)
        trained = {name for name, p in self.policy.named_parameters(remove_duplicate=False) if p.requires_grad}
        return {"model": {name: t for name, t in model.items() if name in trained}, "optimizer": optimizer}
