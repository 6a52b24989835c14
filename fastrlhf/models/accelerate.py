"""Turns a Hugging Face model into one made of our operations."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from torch import nn

from fastrlhf.models import attention_interface
from fastrlhf.models.backbone import backbone, base_model, has_backbone
from fastrlhf.models.families.gpt_neox import GPTNeoXAttention
from fastrlhf.models.families.llama import LlamaAttention, LlamaLayer
from fastrlhf.models.linears import linear_parts
from fastrlhf.models.parts import gated_mlp_part, layer_norm_part, rms_norm_part

# By model_type: the forwards of its attention and of its layers, where they are ours too. The classes are those of the
# first version of transformers that is supported.
_LLAMA = {"Attention": LlamaAttention, "DecoderLayer": LlamaLayer}
FAMILIES: dict[str, dict[str, type]] = {
    "gemma": _LLAMA,
    "gpt2": {},
    "gpt_neox": {"Attention": GPTNeoXAttention},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


def accelerate(model: Any) -> Any:
    """Make `model` of our operations, in place: norms, linear maps, gated MLPs, rotary embedding and attention.

    Weights, names and `state_dict` stay as they are, and so do `save_pretrained`, adapters of PEFT (put on before or
    after), `torch.compile`, gradient checkpointing and copies. Outputs agree within the operations' tolerance.

    Args:
        model: a Hugging Face causal language model (or one with another head), or a PEFT model around one. Llama
            (SmolLM too), Mistral, Qwen2, Qwen3, Gemma, GPT-2 and GPT-NeoX (Pythia) are known; another family gets the
            parts that are found in it, with a notice.

    Returns:
        `model`.

    Raises:
        TypeError: it is not a Hugging Face model.
    """
    notice = accelerate_quietly(model)
    if notice is not None:
        warnings.warn(notice, stacklevel=2)
    return model


def accelerate_quietly(model: Any) -> str | None:
    """As `accelerate`, but gives the notice that a family which is not known calls for; None for those that are."""
    whole = base_model(model)
    if not is_hugging_face(whole):
        raise TypeError(f"model is a {type(model).__name__}, expected a Hugging Face model")
    model_type = whole.config.get_text_config().model_type
    family = FAMILIES.get(model_type)
    parts = [(module, part) for module in whole.modules() if (part := _part(module, family or {}))]
    parts += linear_parts(backbone(whole)) if has_backbone(whole) else []
    for module, part in parts:
        _become(module, part)
    if family is None:
        return (
            f"accelerate does not know the family {model_type!r}: {len(parts)} of its norms, MLPs and linear maps are "
            "made of fastrlhf's operations, its attention and layers stay as they are"
        )
    attention_interface.register()
    whole.set_attn_implementation(attention_interface.NAME)
    return None


def is_hugging_face(model: Any) -> bool:
    """Whether `model` (without adapters around it) has what `accelerate` needs to know of it."""
    return isinstance(model, nn.Module) and hasattr(getattr(model, "config", None), "get_text_config")


def _part(module: nn.Module, family: dict[str, type]) -> type | None:
    """The forward that replaces `module`'s, or None; also where it is replaced already."""
    if hasattr(type(module), "accelerated_from"):
        return None
    for ending, part in family.items():
        if type(module).__name__.endswith(ending):
            return part
    return rms_norm_part(module) or layer_norm_part(module) or gated_mlp_part(module)


def _become(module: nn.Module, part: type) -> None:
    """Give `module` the forward of `part`. By its class, not by an attribute: a copy of the module keeps its own."""
    module.__class__ = _with_forward(type(module), part)


@functools.cache
def _with_forward(original: type, part: type) -> type:
    """A subclass of `original`, of its name, whose forward is that of `part`."""
    return type(
        original.__name__, (part, original), {"__module__": original.__module__, "accelerated_from": original}
    )
