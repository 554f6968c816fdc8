"""The configuration: every shipped file composes, and a mistake is one sentence that names the key and the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import configs
from envs.data import DataSource
from envs.errors import TaudojoError
from training.compose import known_keys, load, options, validate
from training.config import RunConfig
from training.loss import PolicyLossConfig
from training.startup import world_config

CONFIGS = Path(configs.__file__).parent
GROUPS = sorted({file.parent.name for file in CONFIGS.glob("*/*.yaml")})


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes(name: str):
    assert isinstance(load([f"+experiment={name}"]), RunConfig)


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS if group != "experiment" for name in options(group)])
def test_every_choice_of_every_group_composes(choice: str):
    load([choice])


def test_the_typed_config_says_what_the_files_say():
    config = load(["+experiment=smoke", "sft.lr=0.25", "model.path=/some/where", "sft.kinds=[cancel]"])
    assert (config.name, config.deterministic, config.sft.lr, config.model.path) == ("smoke", True, 0.25, "/some/where")
    assert config.sft.kinds == ["cancel"]
    assert config.engine("/m").seeded
    assert config.model.dtype == "bfloat16"


def test_the_example_calls_of_the_prompt_reach_the_workers_and_are_none_by_default():
    source = DataSource(Path("data"), "path", "1")
    assert world_config(load([]), "/m", source).examples == 0
    assert world_config(load(["env.examples=2"]), "/m", source).examples == 2


def test_a_configuration_read_back_from_its_file_is_the_same():
    config = load(["+experiment=grpo", "seed=5", "algorithm=dr_grpo"])
    assert validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.batchsize=3", "no config key sft.batchsize; did you mean sft.batch_size?"),
        ("+sft.batch_sise=3", "no config key sft.batch_sise; did you mean sft.batch_size?"),
        ("sead=3", "no config key sead; did you mean seed?"),
        ("lerner=fsdp", "no config key lerner; did you mean learner?"),
        ("+model.chat.formt=chatml", "no config key model.chat.formt; did you mean model.chat.format?"),
        ("+experiment=grop", "there is no such experiment; did you mean grpo?"),
        ("experiment=grpo", r"write \+experiment=grpo"),
        ("model=smollm2_135", "there is no such model; did you mean smollm2_135m?"),
        ("reward=actons", "there is no such reward; did you mean actions?"),
        ("seed=abc", r"config key seed: .* valid integer.*'abc'"),
        ("env.examples=-1", r"config key env\.examples: .* greater than or equal to 0 \(got -1\)"),
        ("grpo.lr=-1", r"config key grpo.lr: .* greater than 0 \(got -1\)"),
        ("cluster.device=tpu", "config key cluster.device: .*'cpu' or 'cuda'"),
        ("sft.kinds=cancel", r"config key sft.kinds: .* valid list.*'cancel'"),
        ("sft.steps=null", "config key sft: set sft.seconds or sft.steps, or the stage never ends$"),
        ("grpo.steps=null", "config key grpo: set grpo.seconds or grpo.steps, or the stage never ends$"),
        ("sft.kinds=[cancel", "the configuration cannot be composed"),
        ("learner.lora.rnk=8", r"no config key learner\.lora\.rnk; did you mean learner\.lora\.rank"),
        ("learner.lora.rank=0", "config key learner.lora.rank: .* greater than or equal to 1"),
        ("learner.zero_stage=2", "config key learner: learner.zero_stage is DeepSpeed's; set learner=deepspeed"),
        ("learner.offload_optimizer=true", "config key learner: fsdp offloads the optimizer with the parameters"),
        ("sft.trajectories=outputs/<run>", r"sft\.trajectories: the value cannot be read; quote it"),
        ("sft.gold=false", r"config key sft: sft\.gold=false leaves nothing to train on; name files in sft\.trajectories"),
        ("sft.heldout_fraction=1.0", r"config key sft\.heldout_fraction: .* less than 1"),
        ("algorithm.credit=turns", r"config key algorithm\.credit: .*'outcome' or 'turn'"),
        ("checkpoints.best=reward", r"config key checkpoints\.best: "),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(override: str, message: str):
    with pytest.raises(TaudojoError, match=message) as caught:
        load([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learner.zero_stage=2", "learner.offload_parameters=true"],
            "ZeRO-2 keeps whole parameters .* needs learner.zero_stage=3",
        ),
        (["learner.zero_stage=1"], "config key learner.zero_stage: .*2 or 3"),
        (["model.dtype=float16"], "the deepspeed learner computes in bfloat16 or float32; set model.dtype"),
        (["learner.lora.rank=8", "model.lora_targets=[]"], "LoRA needs the names of linear layers; set learner.lora.targets"),
    ],
)
def test_what_deepspeed_cannot_do_is_said_at_start(overrides: list[str], message: str):
    with pytest.raises(TaudojoError, match=message):
        load(["learner=deepspeed", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.lora.quantize=4bit"], r"without an adapter none is frozen; set rank"),
        (
            ["learner.lora.rank=8", "learner.lora.quantize=4bit", "learner=deepspeed"],
            r"learner\.lora\.quantize needs learner=fsdp",
        ),
        (
            ["learner.lora.rank=8", "learner.lora.quantize=4bit", "learner.offload_parameters=true"],
            "4-bit weights stay on the GPU",
        ),
        (["learner.lora.rank=8", "learner.lora.quantize=4bit", "learner.lora.sync=adapter"], "set learner.lora.sync=merged"),
        (["learner.lora.rank=600", "learner.lora.sync=adapter"], "vLLM loads no adapter of a rank above 512"),
        (
            ["learner.lora.rank=8", "learner.lora.modules_to_save=[lm_head]", "learner.lora.sync=adapter"],
            "vLLM loads no adapter with modules_to_save",
        ),
    ],
)
def test_what_an_adapter_cannot_be_is_said_at_start(overrides: list[str], message: str):
    with pytest.raises(TaudojoError, match=message):
        load(overrides)


@pytest.mark.parametrize(
    ("overrides", "sync"),
    [
        ([], "merged"),  # vLLM is slow with an adapter on a CPU
        (["cluster=gpu"], "adapter"),
        (["learner.lora.sync=adapter"], "adapter"),
        (["cluster=gpu", "learner.lora.sync=merged"], "merged"),
        (["cluster=gpu", "learner.lora.quantize=4bit"], "merged"),
        (["cluster=gpu", "learner.lora.modules_to_save=[lm_head]"], "merged"),
    ],
)
def test_engines_are_started_for_what_they_will_be_given(overrides: list[str], sync: str):
    config = load(["learner.lora.rank=8", *overrides])
    lora = config.learner_config("/m", None).lora
    assert lora is not None and lora.sync == sync
    assert config.engine("/m").lora_rank == (8 if sync == "adapter" else None)


@pytest.mark.parametrize(
    ("overrides", "compiled"),
    [([], False), (["cluster=gpu"], True), (["rollout.compile=true"], True), (["cluster=gpu", "rollout.compile=false"], False)],
)
def test_engines_are_compiled_on_gpus_unless_told_otherwise(overrides: list[str], compiled: bool):
    assert load(["+experiment=grpo", *overrides]).engine("/m").compile is compiled


def test_an_adapter_goes_where_the_model_s_file_says_unless_told_otherwise():
    assert load([]).learner_config("/m", None).lora is None
    chosen = load(["learner=deepspeed", "learner.zero_stage=2", "learner.lora.rank=8"]).learner_config("/m", None)
    assert (chosen.backend, chosen.zero_stage) == ("deepspeed", 2)
    assert chosen.lora is not None
    assert (chosen.lora.rank, chosen.lora.targets[0]) == (8, "q_proj")
    told = load(["learner.lora.rank=8", "learner.lora.targets=[v_proj]"]).learner_config("/m", None).lora
    assert told is not None and told.targets == ("v_proj",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.credit=turn", "algorithm.advantage=rloo"], "credit=turn compares turns as grpo does; set advantage=grpo"),
        (["algorithm.credit=turn", "reward=official"], r"algorithm\.credit=turn tells turns apart by the action reward"),
        (["algorithm.credit=turn", "algorithm.kl_in=reward", "algorithm.kl_coef=0.1"], "kl_in=reward charges episodes"),
        (["algorithm.mask_below=2.0", "algorithm.mask_above=0.5"], r"mask_below \(2\.0\) must be less than mask_above"),
        (["grpo.refill=2", "grpo.drop_flat_groups=false"], r"grpo\.refill replaces groups that grpo\.drop_flat_groups drops"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(overrides: list[str], message: str):
    with pytest.raises(TaudojoError, match=message):
        load(overrides)


def test_a_path_of_trajectories_is_a_list_of_one():
    assert load(["sft.trajectories=outputs/a.jsonl"]).sft.trajectories == ["outputs/a.jsonl"]
    assert load(["sft.trajectories=[a.jsonl,b]"]).sft.trajectories == ["a.jsonl", "b"]


def test_rft_is_bounded_by_its_rounds_and_needs_no_budget():
    assert load(["rft.enabled=true", "rft.rounds=3"]).rft.rounds == 3


def test_a_run_of_sft_alone_that_is_not_evaluated_plays_nothing():
    assert load([]).plays
    assert not load(["evaluate.enabled=false", "grpo.enabled=false"]).plays
    assert load(["evaluate.enabled=false", "grpo.enabled=false", "rft.enabled=true"]).plays


def test_the_wrong_override_is_named_among_right_ones():
    with pytest.raises(TaudojoError, match=r"no config key grpo\.stepps; did you mean grpo\.steps"):
        load(["+experiment=smoke", "seed=1", "grpo.stepps=3", "sft.lr=1e-4"])


def test_a_stage_that_is_switched_off_needs_no_budget():
    assert not load(["sft.enabled=false", "sft.steps=null"]).sft.enabled


def test_known_keys_are_those_of_the_base_file_and_the_groups():
    known = set(known_keys())
    assert {"seed", "model", "model.path", "model.chat.format", "sft.batch_size", "env.data.source", "study"} <= known
    base = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    written = set(base) - {"defaults"} | {f"{part}.{key}" for part in ("sft", "rft", "grpo", "evaluate") for key in base[part]}
    assert written <= known


def test_every_algorithm_setting_reaches_the_loss():
    masked = ["algorithm.mask_below=0.5", "algorithm.mask_above=2", "algorithm.mask_level=sequence"]
    settings = load(["algorithm.clip_low=0.1", "algorithm.kl_coef=0.5", "algorithm.tis_cap=null", *masked]).algorithm
    assert settings.loss_config() == PolicyLossConfig(
        clip_low=0.1, kl_coef=0.5, tis_cap=None, mask_below=0.5, mask_above=2.0, mask_level="sequence"
    )
