"""LoRA through peft: adapter layers inside the model, their weights under peft's names, and merged under Hugging Face's.

Backends shard parameters, so nothing here reads one: a `Piece` names the parameters that make up one published tensor and
how to combine them once they are gathered. The reference policy is the model with its adapter off; no weight is copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from envs.errors import TaudojoError
from training.learner.base import LoRAConfig

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"
#: Where peft puts the model inside its own.
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Piece:
    """One published tensor: `combine` of the full values of `parameters`, in their order."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    combine: Callable[..., Tensor]


def plain_pieces(model: nn.Module) -> Iterator[Piece]:
    """Every parameter under its own name; tied ones once."""
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        if name not in tied:
            yield Piece(name, (parameter,), lambda full: full)


def merged(weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """weight `[out, in]` + scaling · up `[out, rank]` down `[rank, in]`, in float32."""
    return weight.float().addmm(up.float(), down.float(), alpha=scaling)


def is_four_bits(parameter: nn.Parameter) -> bool:
    """Whether bitsandbytes packed it."""
    return getattr(parameter, "quant_state", None) is not None


def _four_bits_piece(name: str, parameter: nn.Parameter) -> Piece:
    """A packed weight, which is whole on every rank, as numbers again."""
    from bitsandbytes.functional import dequantize_4bit

    return Piece(name, (), lambda: dequantize_4bit(parameter.data, parameter.quant_state))


class Adapter:
    """Puts LoRA layers into `model`, in place, and freezes everything else; what is trained is float32.

    Raises:
        TaudojoError: a name that is no linear layer of this model, or one that cannot be trained so.
    """

    def __init__(self, model: Any, config: LoRAConfig) -> None:
        from peft import LoraConfig, get_peft_model  # seconds of imports that full training has no use for

        check_names(model, config)
        self._peft: PeftModel = get_peft_model(
            model,
            LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]
                lora_dropout=config.dropout,
                target_modules=list(config.targets),
                modules_to_save=list(config.modules_to_save) or None,
                task_type="CAUSAL_LM",
            ),
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self._model = model
        self.config = config

    def off(self) -> AbstractContextManager[None]:
        """Within the block the model is the base model."""
        return self._peft.disable_adapter()

    def merged_pieces(self) -> Iterator[Piece]:
        """The model's weights with the adapter in them, under Hugging Face's names."""
        from peft.tuners.lora import LoraLayer

        layers = {name: module for name, module in self._model.named_modules() if isinstance(module, LoraLayer)}
        for piece in plain_pieces(self._model):
            name, parameter = piece.name, piece.parameters[0]
            owner, kind = name.rsplit(".", 1)
            if ".lora_A." in name or ".lora_B." in name or ".original_module." in name:
                continue
            layer = layers.get(owner.removesuffix(".base_layer"))
            public = name.replace(".base_layer.", ".").replace(f".modules_to_save.{ADAPTER}.", ".")
            base = _four_bits_piece(public, parameter) if is_four_bits(parameter) else Piece(public, (parameter,), piece.combine)
            if layer is None or kind != "weight":
                yield base
            else:
                scaling = layer.scaling[ADAPTER]
                down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                yield Piece(
                    public, (down, up, *base.parameters), lambda a, b, *w, s=scaling, c=base.combine: merged(c(*w), a, b, s)
                )

    def pieces(self) -> Iterator[Piece]:
        """What is trained, under the names of peft's adapter file."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                public = name.replace(f".modules_to_save.{ADAPTER}.", ".").replace(f".{ADAPTER}.", ".")
                yield Piece(PREFIX + public, (parameter,), lambda full: full)

    def description(self) -> str:
        """What an engine must know beside the weights: the fields of `adapter_config.json` that say how to compute."""
        c = self.config
        return json.dumps({"peft_type": "LORA", "r": c.rank, "lora_alpha": c.alpha, "target_modules": list(c.targets)})

    def write(self, weights: dict[str, Tensor], folder: Path) -> None:
        """`adapter_model.safetensors` and `adapter_config.json`, as `PeftModel.from_pretrained` reads them."""
        from safetensors.torch import save_file

        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = self._peft.peft_config[ADAPTER]
        config.inference_mode = True
        config.save_pretrained(str(folder))
        config.inference_mode = False


def check_names(model: Any, config: LoRAConfig) -> None:
    """Raises TaudojoError for names that the model does not have, and for those that an adapter here cannot carry."""
    modules = dict(model.named_modules())
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    known = sorted({name.rsplit(".", 1)[-1] for name in linear if modules[name] is not head})

    def ending_in(target: str) -> list[str]:
        return [name for name in modules if name == target or name.endswith(f".{target}")]

    for target in config.targets:
        found = ending_in(target)
        if not found or any(name not in linear or modules[name] is head for name in found):
            raise TaudojoError(
                f"learner.lora.targets: {target} is no linear layer inside this model; choose among {', '.join(known)}"
                " (the head and the embeddings can be trained whole: learner.lora.modules_to_save)"
            )
    for name in config.modules_to_save:
        found = ending_in(name)
        if not found:
            raise TaudojoError(f"learner.lora.modules_to_save: this model has no module {name}")
        if model.config.tie_word_embeddings and any(modules[n] in (head, embedding) for n in found):
            raise TaudojoError(
                f"learner.lora.modules_to_save: {name} is tied to the model's other embedding, of which an adapter would make "
                "two; leave it out, or train all weights (learner.lora.rank=null)"
            )
