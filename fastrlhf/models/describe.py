"""Describes a Hugging Face model for the generator, and tries the description out before it is trusted."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn

from fastrlhf.device.observe import host_waits
from fastrlhf.kernels.autocast import switched_off
from fastrlhf.models import decoder
from fastrlhf.models.backbone import backbone, base_model, evaluation_mode
from fastrlhf.models.decoder import CannotDescribe, Decoder, Projection
from fastrlhf.models.families import gpt2_decoder, gpt_neox_decoder, llama_decoder
from fastrlhf.models.layers import run_packed

FAMILIES: dict[str, Callable[[nn.Module, Projection], Decoder]] = {
    "gemma": llama_decoder.describe,
    "gpt2": gpt2_decoder.describe,
    "gpt_neox": gpt_neox_decoder.describe,
    "llama": llama_decoder.describe,
    "mistral": llama_decoder.describe,
    "qwen2": llama_decoder.describe,
    "qwen3": llama_decoder.describe,
}

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# Models whose description gave their own logits; by the way they are adapted, since that changes what is described.
_tried: weakref.WeakKeyDictionary[nn.Module, set[tuple]] = weakref.WeakKeyDictionary()


def describe(model: nn.Module, bring: Callable | None = None) -> Decoder:
    """The weights and layers of `model`, a Hugging Face causal language model or a PEFT model around one.

    The first time for a model, its description's logits of three tokens are compared with its own.

    Args:
        bring: see `Decoder`.

    Raises:
        CannotDescribe: it is of a family that is not known, or has parts that are not; the message says which.
    """
    model = base_model(model)
    config = model.config.get_text_config()
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise CannotDescribe(f"the family {config.model_type!r} is not known")
    try:
        described = _checked(family(model, _head(model))._replace(bring=bring), model)
    except AttributeError as error:
        raise CannotDescribe(f"{type(model).__name__} has not the parts of its family: {error}") from None
    adapted = tuple(len(part.adapters) for part in described.layers[0].attention.projections)
    tried = _tried.setdefault(model, set())
    if adapted not in tried:
        _try_out(model, described)
        tried.add(adapted)
    return described


def _head(model: nn.Module) -> Projection:
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise CannotDescribe("its logits are soft-capped")
    return decoder.projection(model.get_output_embeddings())


def _checked(described: Decoder, model: nn.Module) -> Decoder:
    """The description, if no module around the layers has hooks and all weights have one dtype that we compute in."""
    inner = backbone(model)
    for module in (model, inner, model.get_input_embeddings()):
        decoder.check_plain(module)
    first, tensors = described.embedding, list(described.tensors())
    base = [first] + [part.weight for part in described.projections()]
    if first.dtype not in _FLOATS or any(tensor.dtype != first.dtype for tensor in base):
        raise CannotDescribe("its weights are not all of one dtype among float32, bfloat16 and float16")
    if first.device.type == "meta" or any(tensor.device != first.device for tensor in tensors):
        raise CannotDescribe("its weights are not all on one device")
    rope_type = getattr(described.rotary, "rope_type", "default")
    if rope_type == "dynamic":
        return described._replace(longest=described.rotary.original_max_seq_len - 1)
    if rope_type == "longrope":
        parameters = described.rotary.config.rope_parameters
        return described._replace(longest=parameters["original_max_position_embeddings"])
    return described


@torch.no_grad()
def _try_out(model: nn.Module, described: Decoder) -> None:
    rows = described.embedding.shape[0]
    tokens = torch.arange(3, device=described.embedding.device) * 7 % rows
    waits = host_waits("whether a description gives the model's own logits")
    with evaluation_mode(model), waits, switched_off(tokens):
        given = tokens[None]
        expected = model(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False).logits[0]
        # what is not finite in the model may be anything here: the generator says where it comes from
        expected, found = (
            logits.float().nan_to_num(0, 0, 0) for logits in (expected, run_packed(described, tokens))
        )
        error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    tolerance = 1e-3 if described.embedding.dtype == torch.float32 else 3e-2
    if error > tolerance * max(1e-3, largest):
        raise CannotDescribe(f"{type(model).__name__} computes something else than its family's layers")
