"""All ranks of the learner as Ray actors in one placement group, behind the verbs of one learner.

learner = LearnerGroup.start(config, world_size=2)
metrics = learner.update(samples, SFT, lr=1e-4)
"""

from __future__ import annotations

import copy
import gc
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from envs.errors import TaudojoError
from envs.identity import ensure_own_packages
from envs.machine import cores
from rollouts.scheduler import get
from training.learner.base import HEAP_ENVIRONMENT, LearnerConfig, Sample, why_merged
from training.learner.tree import deal
from training.loss import PolicyLossConfig, policy_loss, sft_loss

if TYPE_CHECKING:
    from training.learner.engine import LearnerEngine

log = logging.getLogger(__name__)

#: Ray tells of a dead rank so soon after the others have lost their connection to it.
DEATH_NOTICE_S = 10.0
START_TIMEOUT_S = 300.0
#: Reading 120 B parameters takes longer than that. A rank that dies meanwhile is an error at once, by Ray and not by waiting.
COLLECTIVE_TIMEOUT_S = 1800.0
#: What a batch is trained with: None is the SFT loss.
LossSpec = PolicyLossConfig | None


class LearnerWorker:
    """One rank: an actor around a backend."""

    def __init__(self, rank: int, world_size: int) -> None:
        ensure_own_packages()
        self.rank, self.world_size = rank, world_size

    def address(self, port: int | None) -> str:
        """Where the ranks meet: the given port of this node, or a free one."""
        with socket.socket() as s:
            try:
                s.bind(("", port or 0))
            except OSError as error:
                raise TaudojoError(f"port {port} is in use; set cluster.rendezvous_port to a free one, or to null") from error
            return f"tcp://{ray.util.get_node_ip_address()}:{s.getsockname()[1]}"

    def setup(self, config: LearnerConfig, address: str) -> None:
        import torch.distributed as dist

        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if config.device.startswith("cuda") else "gloo",  # what is offloaded is reduced on the CPU
            init_method=address,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
        self.learner = backend(config)(config)
        gc.freeze()  # what was imported stays; DeepSpeed collects garbage with every release of its parameters

    def update(self, batch: Sequence[Sample], loss: LossSpec, lr: float, temperature: float = 1.0) -> dict[str, float]:
        return self.learner.update(batch, sft_loss if loss is None else policy_loss(loss), lr, temperature)

    def logprobs(self, batch: Sequence[Sample], reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        with self.learner.reference() if reference else nullcontext():
            return self.learner.logprobs(batch, temperature)

    def keep_reference(self) -> None:
        self.learner.keep_reference()

    def reset_optimizer(self) -> None:
        self.learner.reset_optimizer()

    def forget_momentum(self) -> None:
        self.learner.forget_momentum()

    def publish(self) -> tuple[Any, int] | None:
        """Rank 0 returns a reference to safetensors bytes in Ray's shared memory, and how many they are; the others None."""
        from safetensors.torch import save

        from training.learner.engine import return_free_memory

        return_free_memory()  # the engines work next, and want the room
        published, metadata = self.learner.published()
        weights = {name: tensor.contiguous() for name, tensor in published}
        if self.rank != 0:
            return None
        data = np.frombuffer(save(weights, metadata), dtype=np.uint8)
        return ray.put(data), data.nbytes

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.learner.save(folder, state)

    def load(self, folder: Path) -> dict[str, Any]:
        return self.learner.load(folder)

    def export(self, folder: Path) -> None:
        """Rank 0 writes `model.safetensors` and the config into `folder`."""
        from safetensors.torch import save_file

        weights = {name: tensor.contiguous() for name, tensor in self.learner.weights()}
        if self.rank == 0:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            config = copy.deepcopy(self.learner.policy.model.config)
            vars(config).pop("quantization_config", None)  # what is written has 16 or 32 bits
            config.dtype = self.learner.compute_dtype
            config.save_pretrained(folder)
            self.learner.policy.model.generation_config.save_pretrained(folder)

    def export_adapter(self, folder: Path) -> None:
        """Rank 0 writes peft's two files into `folder`."""
        weights = {name: tensor.contiguous() for name, tensor in self.learner.adapter_weights()}
        if self.rank == 0:
            assert self.learner.adapter is not None
            self.learner.adapter.write(weights, folder)


def backend(config: LearnerConfig) -> type[LearnerEngine]:
    """The class that `config.backend` names; only that library is imported."""
    if config.backend == "deepspeed":
        from training.learner.deepspeed import DeepSpeedLearner

        return DeepSpeedLearner
    from training.learner.fsdp import FSDPLearner

    return FSDPLearner


class LearnerGroup:
    """The learner that stages talk to."""

    def __init__(self, workers: Sequence[Any], group: Any, prefix_tree: bool) -> None:
        self._workers = list(workers)
        self._group = group
        self._prefix_tree = prefix_tree
        self.published_bytes = 0  # of the last `publish`

    @classmethod
    def start(cls, config: LearnerConfig, *, world_size: int = 1, num_gpus: float = 0.0, port: int | None = None) -> LearnerGroup:
        """Raises TaudojoError when the ranks do not come up in time."""
        if config.lora is not None and (why := why_merged(config.lora.rank, config.lora.modules_to_save, config.lora.quantize)):
            log.warning("engines are given the model with the adapter in its weights, at every sync: %s", why)
        bundle = {"GPU": num_gpus} if num_gpus else {"CPU": 1.0}
        group = placement_group([bundle] * world_size, strategy="PACK")
        if not group.wait(START_TIMEOUT_S):
            remove_placement_group(group)
            raise TaudojoError(
                f"Ray has no room for {world_size} learner ranks of {bundle}; "
                "lower cluster.learner_world_size or cluster.rollout_workers"
            )
        threads = config.threads or max(1, cores() // world_size)
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            **HEAP_ENVIRONMENT,
        }
        remote = ray.remote(LearnerWorker)
        started = cls(
            [
                remote.options(
                    num_cpus=0 if num_gpus else 1,
                    num_gpus=num_gpus,
                    runtime_env={"env_vars": environment},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                ).remote(rank, world_size)
                for rank in range(world_size)
            ],
            group,
            config.prefix_tree,
        )
        try:
            address = get(started._workers[0].address.remote(port), START_TIMEOUT_S, "the learner's first rank")
            get([w.setup.remote(config, address) for w in started._workers], COLLECTIVE_TIMEOUT_S, "all learner ranks to load")
        except BaseException:
            started.close()
            raise
        return started

    @property
    def world_size(self) -> int:
        return len(self._workers)

    def _all(self, verb: str, *arguments: Any) -> list[Any]:
        """Calls every rank. A rank that dies is an error at once, though the others still wait in a collective."""
        pending = [getattr(w, verb).remote(*arguments) for w in self._workers]
        return self._gather(pending, verb)

    def _gather(self, pending: list[Any], verb: str) -> list[Any]:
        waiting = list(pending)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            try:
                get(done[0], None, f"the learner ({verb})")
            except FloatingPointError as error:
                raise TaudojoError(str(error)) from error
            except RuntimeError as error:  # perhaps the broken connection to a rank that has died
                for reference in ray.wait(waiting, num_returns=len(waiting), timeout=DEATH_NOTICE_S)[0] if waiting else ():
                    with suppress(RuntimeError):
                        get(reference, None, f"the learner ({verb})")
                raise error
        return ray.get(pending)

    def _shares(self, batch: Sequence[Sample]) -> list[list[int]]:
        """The numbers of each rank's samples."""
        return deal([s.token_ids for s in batch], self.world_size, self._prefix_tree)

    def update(self, batch: Sequence[Sample], loss: LossSpec, lr: float, temperature: float = 1.0) -> dict[str, float]:
        """One optimizer step over the batch; see `Learner.update`. Adds `seconds`."""
        begin = time.monotonic()
        shares = [[batch[i] for i in numbers] for numbers in self._shares(batch)]
        pending = [w.update.remote(share, loss, lr, temperature) for w, share in zip(self._workers, shares, strict=True)]
        return self._gather(pending, "update")[0] | {"seconds": time.monotonic() - begin}

    def logprobs(self, batch: Sequence[Sample], reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        shares = self._shares(batch)
        pending = [
            w.logprobs.remote([batch[i] for i in numbers], reference, temperature)
            for w, numbers in zip(self._workers, shares, strict=True)
        ]
        out: list[list[float]] = [[] for _ in batch]
        for numbers, rows in zip(shares, self._gather(pending, "logprobs"), strict=True):
            for i, row in zip(numbers, rows, strict=True):
                out[i] = row
        return out

    def keep_reference(self) -> None:
        """The present weights become the reference policy of `logprobs(reference=True)`; with LoRA that is the base model."""
        self._all("keep_reference")

    def reset_optimizer(self) -> None:
        self._all("reset_optimizer")

    def forget_momentum(self) -> None:
        """For a stage whose gradients are much smaller than those before it: see `grpo.adam_second_moments`."""
        self._all("forget_momentum")

    def publish(self) -> Any:
        """An object reference to safetensors bytes that `RolloutPool.load_weights` takes; an adapter's if `lora.sync` says so."""
        reference, self.published_bytes = self._all("publish")[0]
        return reference

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        self._all("save", folder, dict(state))

    def load(self, folder: Path) -> dict[str, Any]:
        return self._all("load", folder)[0]

    def export(self, folder: Path) -> None:
        """Writes a Hugging Face model folder (without the tokenizer), an adapter merged in."""
        folder.mkdir(parents=True, exist_ok=True)
        self._all("export", folder)

    def export_adapter(self, folder: Path) -> None:
        """Writes what LoRA trained as a peft folder, for `PeftModel.from_pretrained`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._all("export_adapter", folder)

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        remove_placement_group(self._group)
