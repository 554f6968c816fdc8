"""The DeepSpeed backend: ZeRO-2 (gradients and optimizer sharded) and ZeRO-3 (parameters too). CPU (gloo) and GPU (NCCL).

The optimizer is torch's AdamW, so no DeepSpeed kernel is built. Checkpoints are DeepSpeed's own; one of another world size
is read through DeepSpeed's universal format.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from training.learner.base import LearnerConfig
from training.learner.engine import LearnerEngine, make_optimizer
from training.learner.policy import Policy

TAG = "zero"
#: Elements that are reduced, or gathered ahead, at once: 200 MB in float32, where DeepSpeed's default takes 2 GB.
BUCKET = 50_000_000


class DeepSpeedLearner(LearnerEngine):
    """One rank under ZeRO."""

    def _build(self, policy: Policy) -> None:
        self.library = library(self.device.type)
        self.policy = policy
        head = policy.model.get_output_embeddings()
        # The policy computes with the head's weight itself, outside of the head's forward pass.
        for parameter in head.parameters():
            self.library.zero.register_external_parameter(policy, parameter)
        trained = [p for p in policy.parameters() if p.requires_grad]
        self.engine, zero, _, _ = self.library.initialize(
            model=policy,
            optimizer=make_optimizer(self.config, trained),
            model_parameters=trained,
            config=zero_config(self.config),
            dist_init_required=False,
        )
        self.forward = self.engine
        self.optimizer = zero.optimizer

    def _backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def _step(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()  # left out by DeepSpeed where the norm is not finite
        return float(self.engine.get_global_grad_norm())

    def _gather(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        if self.config.zero_stage < 3:
            return [p.detach() for p in parameters]
        with self.library.zero.GatheredParameters(list(parameters)):
            return [p.detach().clone() for p in parameters]

    def _shards(self) -> list[Tensor]:
        parameters: Any = list(self.policy.parameters())
        return [p.ds_tensor.data if self.config.zero_stage == 3 else p.data for p in parameters]

    def _release(self) -> None:
        if self.config.zero_stage == 3:
            self.engine.empty_partition_cache()

    def _save_shards(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        try:
            self.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=self.adapter is not None)
        except RuntimeError as error:
            if "inline_container" not in str(error):
                raise
            raise OSError(f"rank {self.rank}: {error}") from error  # what torch.save says of a full disk

    def _load_shards(self, folder: Path) -> None:
        saved = len(list((folder / TAG).glob("*_optim_states.pt")))
        if saved == self.world_size:
            self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=self.adapter is None)
        else:
            self._load_universal(folder)

    def _load_universal(self, folder: Path) -> None:
        """From shards of another number of ranks, through one file per parameter that rank 0 writes beside them."""
        whole = folder.parent / ".universal"
        if self.rank == 0:
            to_universal(folder / TAG, whole / TAG)
        dist.barrier()
        self.engine._config.load_universal_checkpoint = True  # a setting of the whole engine, wanted for this once
        try:
            self.engine.load_checkpoint(str(whole), tag=TAG, load_module_strict=self.adapter is None)
        finally:
            self.engine._config.load_universal_checkpoint = False
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(whole)


def to_universal(source: Path, target: Path) -> None:
    """Runs DeepSpeed's converter, which is a command of its own and talks."""
    from deepspeed.checkpoint.ds_to_universal import main

    settings = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(settings)


def library(device: str) -> ModuleType:
    """DeepSpeed, on the learner's device, which it settles while it is imported."""
    os.environ["DS_ACCELERATOR"] = device
    os.environ.setdefault("LOCAL_RANK", "0")  # Ray shows each rank its own device only
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would compile its own all-reduce for CPUs, in which a rank waits for ever when another one dies.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def zero_config(config: LearnerConfig) -> dict[str, Any]:
    """DeepSpeed's settings. Every `engine.step()` is an optimizer step, after any number of `engine.backward()`."""
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": False,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": 0,  # small parameters are sharded too: every shard is the truth
    }
    pinned = config.device.startswith("cuda")
    if config.offload_optimizer or config.offload_parameters:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks for it; batches here are counted in tokens
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.dtype == "bfloat16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }
