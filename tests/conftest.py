"""What tests share: one Ray, one engine and one learner for the session, each started when a test first asks for it.

A random two-layer Llama stands for the learner's model where only arithmetic is asked; the engine runs the real SmolLM2.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.data import DataSource, open_source

os.environ["RAY_AUTH_MODE"] = "disabled"


def pytest_collection_finish() -> None:
    """What was imported stays; a collection need not look at it each time, and DeepSpeed asks for many collections."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind's modules complain at exit about what is left


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray on this machine. Logical CPUs count actors: the engine, the learner, and those that a test adds."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # as in a run; else whatever else is busy starves the workers
    ray.init(
        num_cpus=8,
        object_store_memory=2**30,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: two layers, grouped-query attention, tied embeddings, random weights, no tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,  # larger than usual: log-probs that differ from token to token
    )
    folder = tmp_path_factory.mktemp("tiny_llama")
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    from training.models import ensure_model

    return ensure_model("smollm2_135m")


@pytest.fixture(scope="session")
def packaged_data() -> DataSource:
    return open_source("packaged")


@pytest.fixture(scope="session")
def config() -> Any:
    """A small, repeatable run on one machine's CPUs."""
    from training.compose import load

    return load(
        [
            "cluster=local",
            "tracking=none",
            "deterministic=true",
            "model.dtype=float32",
            "model.max_model_len=2048",
            "rollout.kv_cache_gib=1.0",
            "rollout.max_concurrent=8",
            "evaluate.heldout=12",
            "sft.tasks=24",
        ]
    )


@pytest.fixture(scope="session")
def world_config(config: Any, smollm_path: Path, packaged_data: DataSource) -> Any:
    """Retail with the scripted customer, SmolLM2's tokenizer, compact prompts."""
    from training.startup import world_config

    return world_config(config, str(smollm_path), packaged_data)


@pytest.fixture(scope="session")
def world(world_config: Any) -> Any:
    from rollouts.worker import build_world

    return build_world(world_config)


@pytest.fixture(scope="session")
def task_sets(world: Any, config: Any) -> Any:
    """The run's tasks: `test`, `heldout`, `sft`, `grpo`."""
    from training.tasks import choose_tasks

    return choose_tasks(world.domain, config, grpo_tasks=16)


@pytest.fixture(scope="session")
def pool(cluster: None, config: Any, world_config: Any, smollm_path: Path) -> Iterator[Any]:
    """The session's one engine: vLLM with SmolLM2 in float32, in a rollout worker. Episodes are kept short."""
    from rollouts.scheduler import RolloutPool

    short = replace(world_config, limits=replace(world_config.limits, max_steps=3, max_turn_tokens=32))
    pool = RolloutPool.start(short, config.engine(str(smollm_path)), workers=1, max_concurrent=8)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def learner(cluster: None, config: Any, smollm_path: Path) -> Iterator[Any]:
    """One learner of the engine's model, in float32."""
    from training.learner.group import LearnerGroup

    group = LearnerGroup.start(config.learner_config(str(smollm_path), os.cpu_count()))
    yield group
    group.close()
