"""How much memory a GPU needs for a model: arithmetic on its shape, before anything is downloaded or started.

    python -m training.memory +experiment=large model=qwen3_32b

Weights, optimizer, adapter and cache are exact; activations are counted tensor by tensor and come within a sixth of what was
measured for SmolLM2 (training/resources.py). They are those of the largest micro-batch that there can be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from envs.errors import TaudojoError
from training.compose import load
from training.config import RunConfig, ShapeSection

GIB = 2**30
#: Bytes of a weight in NF4 with doubly quantised constants: half a byte, a byte for 64 weights, a float for 64 × 256.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
#: And in MXFP4: half a byte, and a byte for 32 weights.
MXFP4 = 0.5 + 1 / 32
#: Weights, gradients and two Adam moments in float32.
TRAINED = 16


@dataclass(frozen=True)
class Parameters:
    """How many numbers a model has: in the linear layers of its decoder layers, in its experts, and in all else."""

    linear: int
    experts: int
    rest: int
    layers: int

    @property
    def total(self) -> int:
        return self.linear + self.experts + self.rest

    @property
    def largest_gathered(self) -> int:
        """Of one decoder layer."""
        return (self.linear + self.experts) // self.layers


def linear_layers(shape: ShapeSection) -> dict[str, tuple[int, int]]:
    """`(in, out)` of the linear layers of one decoder layer, by name."""
    h, queries, keys = shape.hidden_size, shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    layers = {"q_proj": (h, queries), "k_proj": (h, keys), "v_proj": (h, keys), "o_proj": (queries, h)}
    if not shape.num_local_experts:
        wide = shape.intermediate_size
        layers |= {"gate_proj": (h, wide), "up_proj": (h, wide), "down_proj": (wide, h)}
    return layers


def parameters(shape: ShapeSection) -> Parameters:
    """Biases, norms, sinks and routers are left out: less than a thousandth."""
    linear = sum(i * o for i, o in linear_layers(shape).values())
    expert = 3 * shape.hidden_size * shape.intermediate_size
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    layers = shape.num_hidden_layers
    return Parameters(layers * linear, layers * shape.num_local_experts * expert, embeddings, layers)


def adapter_parameters(shape: ShapeSection, rank: int, targets: Iterable[str]) -> int:
    layers = linear_layers(shape)
    return shape.num_hidden_layers * rank * sum(sum(layers[name]) for name in targets)


def learner_bytes(config: RunConfig, shape: ShapeSection) -> dict[str, float]:
    """Of one learner GPU, by purpose."""
    count, lora, ranks = parameters(shape), config.lora_config(), config.cluster.learner_world_size
    # FSDP computes with gathered copies: of all layers on one rank, else of the layer in hand, the next one and the embeddings.
    all_stay = ranks == 1 and not config.learner.offload_parameters
    copies = count.total if all_stay else count.rest + 2 * count.largest_gathered
    if lora is None:
        plan = {"weights, gradients, optimizer": TRAINED * count.total / ranks, "copies": 2.0 * copies}
    else:
        adapter = adapter_parameters(shape, lora.rank, lora.targets)
        if lora.quantize:
            others = count.rest + count.experts  # no linear layers, so they stay as they are
            copies = others if ranks == 1 else count.rest + 2 * count.experts // count.layers
            weights = NF4 * count.linear + 2 * others / ranks
        else:
            weights = 2 * count.total / ranks
        plan = {"frozen weights": weights, "copies": 2.0 * copies, "adapter and optimizer": (TRAINED / ranks + 2) * adapter}
    if config.learner.offload_parameters:  # the rest is in the host's memory
        plan = {"copies": plan["copies"]}
    return plan | {
        "activations": float(activation_bytes(config, shape)),
        "logits": 10.0 * config.learner.logits_chunk * shape.vocab_size,  # float32 twice, and their gradient
    }


def activation_bytes(config: RunConfig, shape: ShapeSection) -> int:
    """Of one micro-batch, in 16 bits: what a decoder layer keeps for its backward pass, of all layers or of one."""
    tokens, hidden = config.most_micro_batch_tokens, shape.hidden_size
    attention = 3 * (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim
    mlp = 4 * shape.intermediate_size * max(1, shape.num_experts_per_tok)
    layer = 2 * tokens * (10 * hidden + attention + mlp)
    if config.learner.gradient_checkpointing:
        return layer + 2 * tokens * hidden * shape.num_hidden_layers
    return layer * shape.num_hidden_layers


def engine_bytes(config: RunConfig, shape: ShapeSection) -> dict[str, float]:
    """Of one engine GPU: its share of the weights, and of one token's keys and values in the cache."""
    count, split = parameters(shape), config.rollout.tensor_parallel_size
    experts = (MXFP4 if shape.experts_mxfp4 else 2) * count.experts
    cache = 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return {"weights": (2 * (count.linear + count.rest) + experts) / split, "a token in the cache": cache / split}


def cache_tokens(config: RunConfig, shape: ShapeSection, gpu_gib: float) -> int:
    """Tokens that fit in what an engine's GPU has left, after 4 GiB of its own activations."""
    engine = engine_bytes(config, shape)
    left = gpu_gib * GIB * config.rollout.gpu_memory_utilization - engine["weights"] - 4 * GIB
    return max(0, int(left / engine["a token in the cache"]))


def shape_of(config: RunConfig) -> ShapeSection:
    """Raises TaudojoError for a model whose file has no shape."""
    if config.model.shape is None:
        raise TaudojoError(f"configs/model/{config.model.name}.yaml has no shape; add it (from the model's config.json)")
    return config.model.shape


def report(config: RunConfig, gpu_gib: float = 80e9 / GIB) -> dict[str, Any]:
    """GiB of a learner GPU and of an engine GPU by purpose, their sums, and the tokens that the cache holds."""
    shape = shape_of(config)
    learner = {name: size / GIB for name, size in learner_bytes(config, shape).items()}
    engine = {"weights": engine_bytes(config, shape)["weights"] / GIB}
    return {
        "learner": learner,
        "learner GPU": sum(learner.values()),
        "engine": engine,
        "cache tokens": cache_tokens(config, shape, gpu_gib),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        config = load(list(sys.argv[1:] if arguments is None else arguments))
        told = report(config)
    except TaudojoError as error:
        print(f"taudojo: {error}", file=sys.stderr)
        return 2
    table = Table("of a GPU", "GiB", title=f"{config.model.name}: {parameters(shape_of(config)).total / 1e9:.1f} B parameters")
    for name, size in told["learner"].items():
        table.add_row(f"learner: {name}", f"{size:.1f}")
    table.add_row(f"learner: each of {config.cluster.learner_world_size}", f"{told['learner GPU']:.1f}", style="bold")
    table.add_row(f"engine: weights, each of {config.rollout.tensor_parallel_size}", f"{told['engine']['weights']:.1f}")
    table.add_row("engine: tokens in its cache on an 80 GB GPU", f"{told['cache tokens']:,}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
