"""The run's configuration: a Hydra tree composed from `configs/`, validated into types, so that a typo is an error at start.

config = load(["+experiment=grpo", "seed=3"])
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from envs.errors import TaudojoError
from rewards.audit import Reason
from rollouts.chat import ChatConfig
from rollouts.engines.base import EngineConfig
from rollouts.episode import EpisodeLimits
from rollouts.prompts import Style
from training.learner.base import LearnerConfig
from training.loss import PolicyLossConfig


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    name: str
    path: str | None = None
    chat: ChatConfig
    tool_parser: str
    max_model_len: int
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    lora_targets: list[str] = Field(default_factory=list)
    memory: str = ""


class DataSection(Section):
    source: Literal["packaged", "path", "fetch"] = "packaged"
    path: str | None = None


class EnvSection(Section):
    domain: str = "retail"
    data: DataSection = Field(default_factory=DataSection)
    prompt: Style = "compact"
    max_steps: int = Field(30, ge=1)
    max_errors: int = Field(10, ge=1)
    max_repeats: int = Field(3, ge=2)
    max_turn_tokens: int = Field(160, ge=1)
    deadline_s: float = Field(600.0, gt=0)
    exclude_audited: list[Reason] = Field(default_factory=list)


class UserSection(Section):
    name: str = "scripted"
    settings: dict[str, Any] = Field(default_factory=dict)


class RolloutSection(Section):
    max_concurrent: int = Field(64, ge=1)
    kv_cache_gib: float = Field(2.0, gt=0)
    max_batched_tokens: int = Field(4096, ge=128)
    compile: bool = False
    gpu_memory_utilization: float = Field(0.45, gt=0, lt=1)
    structured: bool = False  # only well-formed tool calls can be sampled
    tensor_parallel_size: int = Field(1, ge=1)


class LearnerSection(Section):
    backend: Literal["fsdp"] = "fsdp"
    micro_batch_tokens: int = Field(4096, ge=1)
    logits_chunk: int = Field(512, ge=1)
    prefix_tree: bool = True
    gradient_checkpointing: bool = False
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class AlgorithmSection(Section):
    advantage: Literal["grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo"] = "grpo"
    normalize_by_std: bool = True
    loss: Literal["vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro", "cispo"] = (
        "vanilla"
    )
    aggregation: Literal["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = (
        "token-mean"
    )
    clip_low: float = 0.2
    clip_high: float = 0.28
    clip_c: float = 3.0
    tis_cap: float | None = 2.0
    dro_beta: float = Field(0.05, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    kl_estimator: Literal["kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "k1+", "k3+"] = "low_var_kl"

    def loss_config(self) -> PolicyLossConfig:
        return PolicyLossConfig(
            name=self.loss,
            aggregation=self.aggregation,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            clip_c=self.clip_c,
            tis_cap=self.tis_cap,
            dro_beta=self.dro_beta,
            kl_coef=self.kl_coef,
            kl_estimator=self.kl_estimator,
        )


class ClusterSection(Section):
    """Who runs where. `address` null starts Ray here; `auto` joins the cluster that RAY_ADDRESS names."""

    device: Literal["cpu", "cuda"] = "cpu"
    address: str | None = None
    rollout_workers: int = Field(1, ge=1)
    gpus_per_rollout_worker: float = Field(0.0, ge=0)
    learner_world_size: int = Field(1, ge=1)
    gpus_per_learner: float = Field(0.0, ge=0)
    object_store_gib: float = Field(1.0, gt=0)
    rendezvous_port: int | None = None  # where learner ranks meet; null takes a free one


class TrackingSection(Section):
    mode: Literal["offline", "online", "none"] = "offline"
    project: str = "taudojo"
    entity: str | None = None


class CheckpointsSection(Section):
    """`keep`: how many of the last checkpoints stay on disk, besides the one where SFT ended."""

    keep: int = Field(1, ge=1)


class EvaluateSection(Section):
    """`test`: the official test split is played (0 leaves it out, a number takes the first so many)."""

    test: int | None = Field(None, ge=0)
    heldout: int = Field(64, ge=1)
    heldout_kinds: list[str] | None = None
    temperature: float = Field(0.0, ge=0)


class TrainingStage(Section):
    """What SFT and GRPO share: a budget."""

    stage: ClassVar[str]
    enabled: bool = True
    seconds: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def bounded(self) -> Self:
        if self.enabled and self.seconds is None and self.steps is None:
            raise ValueError(f"set {self.stage}.seconds or {self.stage}.steps, or the stage never ends")
        return self


class SFTSection(TrainingStage):
    """Stops at `seconds` or `steps`, whichever comes first; the learning rate follows a cosine over that budget."""

    stage: ClassVar[str] = "sft"
    tasks: int = Field(1200, ge=1)
    kinds: list[str] | None = None
    official_train: bool = True
    batch_size: int = Field(8, ge=1)
    lr: float = Field(5e-4, gt=0)
    final_lr: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(5, ge=0)


class GRPOSection(TrainingStage):
    """Each step plays `tasks_per_step` × `samples_per_task` episodes and takes `updates_per_step` optimizer steps."""

    stage: ClassVar[str] = "grpo"
    tasks_per_step: int = Field(4, ge=1)
    samples_per_task: int = Field(6, ge=2)
    kinds: list[str] | None = None
    temperature: float = Field(1.0, gt=0)
    lr: float = Field(1e-5, gt=0)
    warmup_steps: int = Field(1, ge=0)
    updates_per_step: int = Field(1, ge=1)
    negative_weight: float = Field(1.0, ge=0)  # factor on negative advantages
    drop_flat_groups: bool = True  # leave out episodes whose advantage is zero
    train_per_group: int | None = Field(None, ge=2)  # train on so many of a group, those whose rewards vary most; null: on all
    # `reset` forgets SFT's optimizer. `keep` goes on with Adam's second moments: policy gradients are far smaller than SFT's, and
    # a fresh Adam divides them by their own size, noise and all.
    adam_second_moments: Literal["reset", "keep"] = "reset"
    checkpoint_steps: int = Field(5, ge=1)


class StudySection(Section):
    """`+experiment=grpo_study`: GRPO against continued SFT from one checkpoint, over these seeds.

    `run`: the folder of a finished run whose SFT checkpoint is taken; null trains one. `sft_lr`: the peak learning rate of the
    SFT that goes on, with a warm-up and a cosine of its own; null is `sft.lr`.
    """

    run: str | None = None
    sft_lr: float | None = Field(None, gt=0)
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)


class RunConfig(Section):
    model: ModelSection
    env: EnvSection
    user: UserSection
    reward: dict[str, Any]
    rollout: RolloutSection
    learner: LearnerSection
    algorithm: AlgorithmSection
    cluster: ClusterSection
    tracking: TrackingSection
    checkpoints: CheckpointsSection = Field(default_factory=CheckpointsSection)
    evaluate: EvaluateSection
    sft: SFTSection
    grpo: GRPOSection
    study: StudySection | None = None
    name: str = "run"
    seed: int = 0
    deterministic: bool = False
    output_dir: str = "outputs"
    resume: str | None = None

    def limits(self) -> EpisodeLimits:
        e = self.env
        return EpisodeLimits(self.model.max_model_len, e.max_turn_tokens, e.max_steps, e.max_errors, e.max_repeats, e.deadline_s)

    def engine(self, model_path: str) -> EngineConfig:
        r = self.rollout
        return EngineConfig(
            model_path=model_path,
            dtype=self.dtype,
            max_model_len=self.model.max_model_len,
            max_num_seqs=r.max_concurrent,
            max_batched_tokens=r.max_batched_tokens,
            kv_cache_gib=r.kv_cache_gib,
            gpu_memory_utilization=r.gpu_memory_utilization,
            compile=r.compile,
            tensor_parallel_size=r.tensor_parallel_size,
            seed=self.seed,
            structured=r.structured,
            seeded=self.deterministic,
        )

    def learner_config(self, model_path: str, threads: int | None) -> LearnerConfig:
        c = self.learner
        return LearnerConfig(
            model_path=model_path,
            dtype=self.dtype,
            device=self.cluster.device,
            micro_batch_tokens=c.micro_batch_tokens,
            logits_chunk=c.logits_chunk,
            prefix_tree=c.prefix_tree,
            gradient_checkpointing=c.gradient_checkpointing,
            temperature=self.grpo.temperature,
            weight_decay=c.weight_decay,
            max_grad_norm=c.max_grad_norm,
            threads=threads,
            seed=self.seed,
            deterministic=self.deterministic,
        )

    @property
    def dtype(self) -> str:
        """Deterministic runs compute in float32 on both sides."""
        return "float32" if self.deterministic else self.model.dtype


def load(overrides: list[str]) -> RunConfig:
    """Composes and validates. Raises TaudojoError that names the wrong key or experiment and the nearest right one."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            raw = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise TaudojoError(_composition_message(error, overrides)) from error
    assert isinstance(raw, dict)
    return validate(raw)


def validate(raw: dict[str, Any]) -> RunConfig:
    """A typed config from plain data. Raises TaudojoError that names the key."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise TaudojoError(f"there is no config key {where}{_nearest(where, known_keys())}") from error
        got = "" if isinstance(first.get("input"), dict) else f" (got {first.get('input')!r})"
        raise TaudojoError(f"config key {where or 'of the run'}: {first['msg'].removeprefix('Value error, ')}{got}") from error


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the typed config."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def options(group: str) -> list[str]:
    """The files of a config group, e.g. `options("experiment")`."""
    import configs

    return sorted(p.stem for p in (Path(configs.__file__).parent / group).glob("*.yaml"))


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _composition_message(error: Exception, overrides: list[str]) -> str:
    """Hydra's error in one sentence with a suggestion."""
    text = str(error)
    missing = re.search(r"Could not find '([\w-]+)/([\w-]+)'", text)
    if missing:
        group, name = missing.groups()
        return f"{group}={name}: there is no such {group}{_nearest(name, options(group))} (have: {', '.join(options(group))})"
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        if override.startswith("experiment="):
            return f"an experiment is added to the base configuration: write +{override}"
        if f"'{key}'" in text or f"'{key.split('.')[-1]}'" in text or override in text:
            return f"there is no config key {key}{_nearest(key, known_keys())}"
    return f"the configuration cannot be composed: {text.splitlines()[0]}"
