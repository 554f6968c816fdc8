"""The policy's model as a rank loads it: which attention it gets, in how many bits, and from whom its weights come.

With FSDP on several ranks, rank 0 reads the files and the others begin with an empty model; `receive` hands on layer by
layer what is then sharded, so that no rank but the first ever holds the whole model, and that one in the host's memory.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, Mxfp4Config

from envs.errors import TaudojoError
from training.learner import attention, flex
from training.learner.base import LearnerConfig, torch_dtype

log = logging.getLogger(__name__)

#: Layers that attend as a tree's mask says, and those that carry a state along the row instead.
ATTENDING = {"full_attention", "sliding_attention"}
RECURRENT = {"linear_attention", "conv", "mamba", "hybrid"}
#: Under these names models keep what they do to logits after the head.
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def load_model(config: LearnerConfig, whole: bool = True, device: str | None = None) -> Any:
    """The Hugging Face model on `device` (the learner's unless given); without `whole` its tensors are on `meta`.

    What is trained is float32, what is frozen in the compute dtype or in 4 bits.

    Raises:
        TaudojoError: a model whose attention cannot be that of a tree, or a library that is missing.
    """
    attention.register()
    flex.register()
    hf_config = AutoConfig.from_pretrained(config.model_path)
    stored = getattr(hf_config, "quantization_config", None) or {}
    settings: dict[str, Any] = {
        "dtype": torch.float32 if config.lora is None else torch_dtype(config.dtype),
        "attn_implementation": attention_for(hf_config, config.device),
    }
    if not whole:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf_config, **settings)
        model.tie_weights()
    elif quantized(config):
        if stored:
            raise TaudojoError(
                f"{config.model_path} is stored as {stored.get('quant_method')}; it cannot be quantised again: set "
                "learner.lora.quantize=null"
            )
        settings |= {"quantization_config": four_bits(config), "device_map": {"": device or config.device}}
        model = AutoModelForCausalLM.from_pretrained(config.model_path, **settings)
        keep_packing(model)
    else:
        if stored.get("quant_method") == "mxfp4":  # gpt-oss as published; MXFP4 has no backward pass
            settings["quantization_config"] = Mxfp4Config(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(config.model_path, **settings).to(device or config.device)
    if "ALL_ATTENTION_FUNCTIONS" not in vars(sys.modules[type(model).__module__]):
        raise TaudojoError(f"{type(model).__name__} does not compute its attention through transformers' AttentionInterface")
    if config.liger:
        apply_liger(model, config.device)
    return model


def attention_for(hf_config: Any, device: str) -> str:
    """The name under which the model finds its attention. Raises TaudojoError where the learner would be wrong."""
    text = hf_config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if scaled := [name for name in SCALED_LOGITS if getattr(text, name, None) not in (None, 1, 1.0)]:
        raise TaudojoError(f"the learner computes logits without {scaled[0]}, which {text.model_type} puts on them")
    if other := kinds - ATTENDING - RECURRENT:
        raise TaudojoError(f"the learner has no attention for layers of the kind {', '.join(sorted(other))} ({text.model_type})")
    if device.startswith("cuda"):
        return flex.NAME
    windows = getattr(text, "sliding_window", None) is not None and (not kinds or "sliding_attention" in kinds)
    if windows or getattr(text, "attn_logit_softcapping", None) is not None:
        log.warning("on a CPU this model's windows or caps are computed with whole masks: keep learner.micro_batch_tokens small")
        return flex.NAME
    return attention.NAME


def recurrent(model: Any) -> bool:
    """Whether a layer carries a state from token to token, so that a row may hold one sample only."""
    return model._is_stateful or bool(RECURRENT & set(getattr(model.config.get_text_config(), "layer_types", None) or ()))


def quantized(config: LearnerConfig) -> bool:
    return config.lora is not None and config.lora.quantize is not None


def four_bits(config: LearnerConfig) -> BitsAndBytesConfig:
    """QLoRA's format (Dettmers et al. 2023): NF4 with quantised constants, computed in the learner's dtype."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TaudojoError("learner.lora.quantize=4bit needs bitsandbytes; install it with: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(config.dtype),
    )


def keep_packing(model: nn.Module) -> None:
    """On some CPUs bitsandbytes would pack weights anew for inference, and nothing but its own kernel could read them."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def apply_liger(model: Any, device: str) -> None:
    """Replaces norms, rotary embeddings and gated MLPs by Liger's kernels, in place.

    Raises:
        TaudojoError: there is no GPU, no liger_kernel, or no kernel for this model.
    """
    if not device.startswith("cuda"):
        raise TaudojoError("learner.liger=true needs a GPU; Liger's kernels are written in Triton")
    if importlib.util.find_spec("liger_kernel") is None:
        raise TaudojoError("learner.liger=true needs Liger's kernels; install them with: pip install liger-kernel")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise TaudojoError(f"Liger has no kernels for {model.config.model_type}; set learner.liger=false")
    # The learner has its own loss.
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)


def receive(module: nn.Module, device: torch.device, frozen_dtype: torch.dtype) -> None:
    """Puts rank 0's parameters and buffers into `module` on every rank, on `device`; what is sharded stays. Collective."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, old in store.items():
                if old is None or isinstance(old, DTensor):
                    continue
                if id(old) not in made:
                    made[id(old)] = old, _from_rank_0(old, device, frozen_dtype)  # tied weights are one tensor again
                store[name] = made[id(old)][1]  # type: ignore[assignment]


def _from_rank_0(old: Tensor, device: torch.device, frozen_dtype: torch.dtype) -> Tensor:
    trained_or_buffer = old.requires_grad or not isinstance(old, nn.Parameter)
    dtype = old.dtype if trained_or_buffer else frozen_dtype
    new = torch.empty(old.shape, dtype=dtype, device=device) if old.is_meta else old.detach().to(device, dtype).contiguous()
    dist.broadcast(new.reshape(-1).view(torch.uint8), 0)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
