"""What a run will take of this machine, asked for before anything is started: a clear sentence now is better than a killed
process in ten minutes.

The figures for a laptop (SmolLM2-135M, micro-batches of 4,096 tokens, bf16, no GPU) were measured: learner 7.6 GiB, all
other processes 5.2 beside the KV cache. Other sizes are scaled by parameters and activations.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from envs.errors import TaudojoError
from envs.machine import memory
from training.config import RunConfig

GIB = 2**30
#: Python, torch and their libraries in the driver, Ray's processes, the rollout worker and vLLM's own.
_PROCESSES_GIB = 5.0
#: Per parameter: fp32 weights, gradients and two Adam moments, and the copy that is computed with.
_LEARNER_BYTES = 18
#: With LoRA: the frozen weights, and the copy that is computed with; the adapter is small.
_LORA_BYTES = 8
#: Per token, layer and hidden unit: what the backward pass needs of a decoder layer.
_ACTIVATION_BYTES = 60
#: Per trained parameter in a checkpoint: fp32 weights, two Adam moments, and a tied head once more (SmolLM2-135M: 12.9).
_CHECKPOINT_BYTES = 13
#: Per parameter of a model for users, and how many a run leaves: after SFT and at its end.
_MODEL_BYTES, _MODELS = 2, 2
#: Trajectories, logs, and what other programs write meanwhile.
_OTHER_FILES_GB = 0.5
#: Of the memory that is needed: with less the run would be killed or swap. Not every process is at its peak at once.
#: `taudojo doctor` knows what comes of it for the main experiment (RUN_MEMORY).
_LEAST = 0.75


def check_resources(config: RunConfig, model_path: str, run_folder: Path) -> None:
    """Raises TaudojoError where memory or disk will not do. What a resumed run has written already needs no more room."""
    if config.cluster.address is None and config.cluster.device == "cpu":
        plan = memory_plan(config, model_path)
        need, free = sum(plan.values()), memory()[1] / GIB
        if free < _LEAST * need:
            detail = ", ".join(f"{name} {size:.1f}" for name, size in plan.items())
            raise TaudojoError(
                f"too little memory: the run needs about {need:.1f} GiB ({detail}) and {free:.1f} GiB are free; "
                "close other programs, raise the container's or the job's limit, or lower rollout.kv_cache_gib or "
                "learner.micro_batch_tokens"
            )
    written = sum(file.stat().st_size for file in run_folder.rglob("*") if file.is_file()) / 1e9
    need, free = disk_plan_gb(config, model_path) - written, shutil.disk_usage(run_folder).free / 1e9
    if free < need:
        raise TaudojoError(
            f"too little disk: checkpoints and models need about {need:.1f} GB, {free:.1f} GB are free in {config.output_dir}; "
            "make room or set output_dir"
        )


def disk_plan_gb(config: RunConfig, model_path: str) -> float:
    """GB that the run's folder takes at most: its checkpoints with the one being written, and its models."""
    stages = [config.sft, config.rft, config.grpo]
    starting_points = sum(stage.enabled for stage in stages[:2])
    checkpoints = starting_points + config.checkpoints.keep + (config.checkpoints.best is not None) + 1
    each = _CHECKPOINT_BYTES if config.learner.lora.rank is None else 0  # an adapter's is small
    parameters = _count_parameters(Path(model_path))
    return parameters * (checkpoints * each + _MODELS * _MODEL_BYTES) / 1e9 + _OTHER_FILES_GB


def memory_plan(config: RunConfig, model_path: str) -> dict[str, float]:
    """GiB by purpose, of a run without a GPU."""
    folder = Path(model_path)
    shape = _shape(folder)
    weights = _weight_bytes(folder)
    parameters = _count_parameters(folder)
    # A small batch does not fill a micro-batch.
    episodes = max(config.sft.batch_size, config.grpo.tasks_per_step * config.grpo.samples_per_task)
    tokens = min(config.planned_micro_batch_tokens, episodes * config.model.max_model_len)
    units = tokens * shape.get("num_hidden_layers", 0) * shape.get("hidden_size", 0)
    bytes_each = _LEARNER_BYTES if config.learner.lora.rank is None else _LORA_BYTES
    return {
        "KV cache": config.rollout.kv_cache_gib * config.cluster.rollout_workers * config.plays,
        "object store": config.cluster.object_store_gib,
        "learner": (parameters * bytes_each + units * _ACTIVATION_BYTES) / GIB + 1.0,
        "processes and engine": _PROCESSES_GIB + 2 * weights / GIB,
    }


def _shape(folder: Path) -> dict[str, Any]:
    shape = json.loads((folder / "config.json").read_text())
    return shape.get("text_config", shape)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _count_parameters(folder: Path) -> float:
    shape = _shape(folder)
    return _weight_bytes(folder) / (4 if shape.get("dtype", shape.get("torch_dtype")) == "float32" else 2)
