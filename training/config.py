"""The types of a run's configuration, which `training/compose.py` makes from `configs/`. A key that is not here is an error."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rewards.audit import Reason
from rollouts.chat import ChatConfig
from rollouts.engines.base import EngineConfig
from rollouts.episode import EpisodeLimits
from rollouts.prompts import Style
from training.learner.base import LEAST_MICRO_BATCH_TOKENS, LearnerConfig, LoRAConfig, why_merged
from training.loss import PolicyLossConfig


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeSection(Section):
    """A decoder's sizes, under the names of its config.json, for the memory plan (training/memory.py).

    `experts_mxfp4`: the published experts have 4 bits, and engines play them so; the learner makes them 16.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    experts_mxfp4: bool = False


class ModelSection(Section):
    name: str
    path: str | None = None
    chat: ChatConfig
    tool_parser: str
    max_model_len: int
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    lora_targets: list[str] = Field(default_factory=list)
    memory: str = ""
    shape: ShapeSection | None = None


class DataSection(Section):
    source: Literal["packaged", "path", "fetch"] = "packaged"
    path: str | None = None


class EnvSection(Section):
    domain: str = "retail"
    data: DataSection = Field(default_factory=DataSection)
    prompt: Style = "compact"
    examples: int = Field(0, ge=0)
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
    """`mode`: when episodes are played (training/stages/ahead.py). `max_staleness`: how many weight versions a token may be old
    when it is trained on; of `async` alone.

    `compile`: vLLM compiles the model; null: on GPUs. On a CPU it starts a minute later and then writes a third faster.
    """

    mode: Literal["sync", "one_step_off", "async"] = "sync"
    max_staleness: int = Field(1, ge=1)
    max_concurrent: int = Field(64, ge=1)
    kv_cache_gib: float = Field(2.0, gt=0)
    max_batched_tokens: int = Field(4096, ge=128)
    compile: bool | None = None
    gpu_memory_utilization: float = Field(0.45, gt=0, lt=1)
    structured: bool = False  # only well-formed tool calls can be sampled
    tensor_parallel_size: int = Field(1, ge=1)

    @property
    def steps_ahead(self) -> int:
        """How many steps may be played before the one that is trained on is done."""
        return {"sync": 0, "one_step_off": 1, "async": self.max_staleness}[self.mode]


class LoRASection(Section):
    """`rank` null trains all weights. `targets` null takes those of the model's file (`model.lora_targets`).

    `sync`: engines are given the `adapter` alone, or the model with it in the weights (`merged`); null: the first
    on GPUs where vLLM can (on a CPU, vLLM plays half as fast with an adapter).
    `quantize`: the frozen linear layers are kept in 4 bits.
    """

    rank: int | None = Field(None, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | None = Field(None, min_length=1)
    modules_to_save: list[str] = Field(default_factory=list)
    sync: Literal["adapter", "merged"] | None = None
    quantize: Literal["4bit"] | None = None

    @model_validator(mode="after")
    def sync_can(self) -> Self:
        if self.quantize and self.rank is None:
            raise ValueError(
                "learner.lora.quantize keeps frozen weights in 4 bits, and without an adapter none is frozen; set rank"
            )
        if self.sync == "adapter" and self.why_merged:
            raise ValueError(f"{self.why_merged}; set learner.lora.sync=merged, or leave it null")
        return self

    @property
    def why_merged(self) -> str | None:
        """Why engines cannot be given the adapter alone; None where they can."""
        return why_merged(self.rank or 0, self.modules_to_save, self.quantize)


class LearnerSection(Section):
    """`zero_stage` is DeepSpeed's. `offload_parameters` keeps parameters and optimizer in the host's memory between uses."""

    backend: Literal["fsdp", "deepspeed"] = "fsdp"
    zero_stage: Literal[2, 3] | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False
    lora: LoRASection = Field(default_factory=LoRASection)
    micro_batch_tokens: int | None = Field(None, ge=1)
    logits_chunk: int = Field(512, ge=1)
    prefix_tree: bool = True
    gradient_checkpointing: bool = False
    liger: bool = False
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def backend_can(self) -> Self:
        if self.lora.quantize:
            if self.backend == "deepspeed":
                raise ValueError("ZeRO would take 4-bit weights apart; learner.lora.quantize needs learner=fsdp")
            if self.offload_parameters:
                raise ValueError("4-bit weights stay on the GPU; learner.lora.quantize needs learner.offload_parameters=false")
        if self.backend == "fsdp":
            if self.zero_stage is not None:
                raise ValueError("learner.zero_stage is DeepSpeed's; set learner=deepspeed, or leave it null")
            if self.offload_optimizer:
                raise ValueError("fsdp offloads the optimizer with the parameters; set learner.offload_parameters=true")
        elif self.offload_parameters and self.zero_stage == 2:
            raise ValueError("ZeRO-2 keeps whole parameters on every rank; learner.offload_parameters needs learner.zero_stage=3")
        return self


class AlgorithmSection(Section):
    advantage: Literal[
        "grpo",
        "grpo_vectorized",
        "grpo_passk",
        "rloo",
        "rloo_vectorized",
        "opo",
        "gpg",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
    ] = "grpo"
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
    # Tokens whose exp(learner − sampler) lies outside are left out of the policy loss; null leaves none out. At the level of a
    # sequence the geometric mean over its tokens decides for all of them.
    mask_below: float | None = Field(None, gt=0)
    mask_above: float | None = Field(None, gt=0)
    mask_level: Literal["token", "sequence"] = "token"
    dro_beta: float = Field(0.05, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    kl_estimator: Literal["kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "k1+", "k3+"] = "low_var_kl"
    # `loss`: KL is a term of the loss, token by token. `reward`: it is taken off the episode's reward, summed over its tokens.
    kl_in: Literal["loss", "reward"] = "loss"
    # `outcome`: every token of an episode has the episode's advantage. `turn`: a turn's tokens have that of what was earned from
    # this turn on (training/credit.py).
    credit: Literal["outcome", "turn"] = "outcome"

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.credit == "turn" and self.advantage not in ("grpo", "grpo_vectorized"):
            raise ValueError(f"credit=turn compares turns as grpo does; set advantage=grpo (it is {self.advantage})")
        if self.credit == "turn" and self.kl_in == "reward" and self.kl_coef > 0:
            raise ValueError("kl_in=reward charges episodes, credit=turn rewards turns; choose kl_in=loss or credit=outcome")
        if self.mask_below is not None and self.mask_above is not None and self.mask_below >= self.mask_above:
            raise ValueError(f"mask_below ({self.mask_below}) must be less than mask_above ({self.mask_above})")
        return self

    def loss_config(self) -> PolicyLossConfig:
        return PolicyLossConfig(
            name=self.loss,
            aggregation=self.aggregation,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            clip_c=self.clip_c,
            tis_cap=self.tis_cap,
            mask_below=self.mask_below,
            mask_above=self.mask_above,
            mask_level=self.mask_level,
            dro_beta=self.dro_beta,
            kl_coef=self.kl_coef if self.kl_in == "loss" else 0.0,
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
    """Where numbers go, and how often episodes are shown: on the console, in `metrics.jsonl` and, with them, in wandb.

    `dashboard`: online, the project is given its dashboard if it has none. `sample_steps`: after every so many steps, and after
    evaluations, a table of `sample_rows` episodes, from the worst to the best; 0 shows none. `conversation_episodes`: of every so
    many episodes one whole conversation; 0 shows none.
    """

    mode: Literal["offline", "online", "none"] = "offline"
    project: str = "taudojo"
    entity: str | None = None
    dashboard: bool = True
    sample_steps: int = Field(10, ge=0)
    sample_rows: int = Field(4, ge=1)
    conversation_episodes: int = Field(100, ge=0)


class CheckpointsSection(Section):
    """`keep`: how many of the last checkpoints stay on disk, besides those where SFT and RFT ended.

    `best`: a metric as `stage/name`, for example `grpo/reward/mean`. The checkpoint where it was best stays too: where it was
    least if its name ends in `loss`, else greatest.
    """

    keep: int = Field(1, ge=1)
    best: str | None = Field(None, pattern=r"^(sft|rft|grpo)/.+$")


class EvaluateSection(Section):
    """`test`: the official test split is played (0 leaves it out, a number takes the first so many).

    `enabled` false plays nothing; a run that has SFT only then starts no engine.
    """

    enabled: bool = True
    test: int | None = Field(None, ge=0)
    heldout: int = Field(64, ge=1)
    heldout_kinds: list[str] | None = None
    temperature: float = Field(0.0, ge=0)


class TrainingStage(Section):
    """What SFT, RFT and GRPO share: a budget."""

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
    gold: bool = True  # the expert's episodes of the training tasks
    trajectories: list[str] = Field(default_factory=list)  # files as runs write under trajectories/, or folders of such files
    min_reward: float | None = None  # of the episodes in these files; null takes all
    heldout_fraction: float = Field(0.0, ge=0, lt=1)  # of the tasks; their episodes are measured, never trained on
    heldout_steps: int = Field(20, ge=1)  # measured every so many steps, and at the end
    tasks: int = Field(1200, ge=1)
    shortest: float = Field(1.0, gt=0, le=1)  # share of each kind's gold episodes that is trained on, its shortest
    kinds: list[str] | None = None
    official_train: bool = True
    batch_size: int = Field(8, ge=1)
    lr: float = Field(5e-4, gt=0)
    final_lr: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(5, ge=0)
    checkpoint_steps: int | None = Field(None, ge=1)  # null: only where the stage ends or is interrupted

    @field_validator("trajectories", mode="before")
    @classmethod
    def one_or_more(cls, value: Any) -> Any:
        """`sft.trajectories=PATH` is a list of one."""
        return [value] if isinstance(value, str) else [] if value is None else value

    @model_validator(mode="after")
    def something_to_train_on(self) -> Self:
        if self.enabled and not self.gold and not self.trajectories:
            raise ValueError("sft.gold=false leaves nothing to train on; name files in sft.trajectories")
        return self


class RFTSection(TrainingStage):
    """`rounds` times: play `tasks_per_round` × `samples_per_task` episodes, keep the good ones, train on them as SFT does.

    Ends earlier where `steps` (optimizer steps, of all rounds) are taken; no round is begun after `seconds`.
    """

    stage: ClassVar[str] = "rft"
    enabled: bool = False
    rounds: int = Field(2, ge=1)
    tasks_per_round: int = Field(32, ge=1)
    samples_per_task: int = Field(4, ge=1)
    kinds: list[str] | None = None
    temperature: float = Field(1.0, gt=0)
    threshold: float = 0.9  # least reward of an episode that is kept
    keep_per_task: int = Field(2, ge=1)  # at most so many of a task, no two with the same calls
    epochs: int = Field(1, ge=1)  # over a round's kept episodes
    batch_size: int = Field(8, ge=1)
    lr: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(2, ge=0)

    @model_validator(mode="after")
    def bounded(self) -> Self:
        return self  # by its rounds


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
    refill: int = Field(0, ge=0)  # play other groups in place of those without a signal, at most so many in a step
    train_per_group: int | None = Field(None, ge=2)  # train on so many of a group, those whose rewards vary most; null: on all
    # `reset` forgets SFT's optimizer. `keep` goes on with Adam's second moments: policy gradients are far smaller than SFT's, and
    # a fresh Adam divides them by their own size, noise and all.
    adam_second_moments: Literal["reset", "keep"] = "reset"
    checkpoint_steps: int = Field(5, ge=1)

    @model_validator(mode="after")
    def refill_replaces(self) -> Self:
        if self.refill and not self.drop_flat_groups:
            raise ValueError("grpo.refill replaces groups that grpo.drop_flat_groups drops; set it to true")
        return self


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
    rft: RFTSection = Field(default_factory=RFTSection)
    grpo: GRPOSection
    study: StudySection | None = None
    name: str = "run"
    seed: int = 0
    #: Of the whole run. GRPO ends so early that an evaluation as long as the last one still fits, but takes one step at least.
    seconds: float | None = Field(None, gt=0)
    deterministic: bool = False
    output_dir: str = "outputs"
    resume: str | None = None

    @model_validator(mode="after")
    def mode_is_possible(self) -> Self:
        if self.rollout.mode == "sync":
            return self
        if self.deterministic:
            raise ValueError(
                f"rollout.mode={self.rollout.mode} plays while the learner works, and its runs never repeat exactly; set "
                "rollout.mode=sync, or deterministic=false"
            )
        if self.grpo.enabled and self.algorithm.tis_cap is None and self.algorithm.mask_above is None:
            raise ValueError(
                f"rollout.mode={self.rollout.mode} trains on tokens of older weights, which algorithm.tis_cap corrects; set it, "
                "e.g. to 2.0"
            )
        return self

    @model_validator(mode="after")
    def learner_can(self) -> Self:
        if self.learner.backend == "deepspeed" and self.model.dtype == "float16":
            raise ValueError("the deepspeed learner computes in bfloat16 or float32; set model.dtype")
        if self.learner.lora.rank and not (self.learner.lora.targets or self.model.lora_targets):
            raise ValueError("LoRA needs the names of linear layers; set learner.lora.targets, e.g. [q_proj,v_proj]")
        return self

    def limits(self) -> EpisodeLimits:
        e = self.env
        return EpisodeLimits(self.model.max_model_len, e.max_turn_tokens, e.max_steps, e.max_errors, e.max_repeats, e.deadline_s)

    def engine(self, model_path: str) -> EngineConfig:
        r, lora = self.rollout, self.lora_config()
        return EngineConfig(
            model_path=model_path,
            dtype=self.model.dtype,
            max_model_len=self.model.max_model_len,
            max_num_seqs=r.max_concurrent,
            max_batched_tokens=r.max_batched_tokens,
            kv_cache_gib=r.kv_cache_gib,
            gpu_memory_utilization=r.gpu_memory_utilization,
            compile=self.cluster.device == "cuda" if r.compile is None else r.compile,
            tensor_parallel_size=r.tensor_parallel_size,
            seed=self.seed,
            structured=r.structured,
            seeded=self.deterministic,
            lora_rank=lora.rank if lora and lora.sync == "adapter" else None,
        )

    def learner_config(self, model_path: str, threads: int | None) -> LearnerConfig:
        c = self.learner
        return LearnerConfig(
            model_path=model_path,
            backend=c.backend,
            zero_stage=c.zero_stage or 3,
            offload_optimizer=c.offload_optimizer,
            offload_parameters=c.offload_parameters,
            lora=self.lora_config(),
            dtype=self.model.dtype,
            device=self.cluster.device,
            micro_batch_tokens=c.micro_batch_tokens,
            logits_chunk=c.logits_chunk,
            prefix_tree=c.prefix_tree,
            gradient_checkpointing=c.gradient_checkpointing,
            liger=c.liger,
            weight_decay=c.weight_decay,
            max_grad_norm=c.max_grad_norm,
            threads=threads,
            seed=self.seed,
            deterministic=self.deterministic,
        )

    def lora_config(self) -> LoRAConfig | None:
        lora = self.learner.lora
        if lora.rank is None:
            return None
        targets = tuple(lora.targets or self.model.lora_targets)
        alone = self.cluster.device == "cuda" and lora.why_merged is None
        sync = lora.sync or ("adapter" if alone else "merged")
        return LoRAConfig(lora.rank, lora.alpha, targets, lora.dropout, tuple(lora.modules_to_save), sync, lora.quantize)

    @model_validator(mode="after")
    def credit_has_actions(self) -> Self:
        if self.grpo.enabled and self.algorithm.credit == "turn" and "actions" not in self.reward:
            raise ValueError("algorithm.credit=turn tells turns apart by the action reward; set reward=actions or reward=mixed")
        return self

    @property
    def planned_micro_batch_tokens(self) -> int:
        """What a micro-batch is expected to hold, for a laptop's plan: an official episode is about half as long as it may be."""
        longest = self.model.max_model_len if self.env.prompt == "official" else 0
        return self.learner.micro_batch_tokens or max(LEAST_MICRO_BATCH_TOKENS, longest)

    @property
    def most_micro_batch_tokens(self) -> int:
        """What a micro-batch can hold at most, with an episode as long as the model allows: one above the budget stands alone."""
        longest = self.model.max_model_len
        return max(self.learner.micro_batch_tokens or max(LEAST_MICRO_BATCH_TOKENS, 2 * longest), longest)

    @property
    def plays(self) -> bool:
        """Whether any stage needs an engine."""
        return self.evaluate.enabled or self.rft.enabled or self.grpo.enabled or self.study is not None
