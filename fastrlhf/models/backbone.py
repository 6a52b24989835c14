"""The parts of a Hugging Face model, whatever wraps it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastrlhf.device.observe import host_waits
from fastrlhf.models import attention_interface

MASK_LOOKED_AT = "transformers looks whether anything is masked"
DROPOUT = nn.modules.dropout._DropoutNd


def is_peft(model: nn.Module) -> bool:
    """Whether `model` is a PEFT model (peft is imported only if something already imported it)."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_model(model: nn.Module) -> nn.Module:
    """The causal language model inside a PEFT model (with its adapters in place), or `model` itself."""
    return model.get_base_model() if is_peft(model) else model


def backbone(model: nn.Module) -> nn.Module:
    """The part of a Hugging Face model that maps tokens to hidden states: all but the head.

    Raises:
        ValueError: the model does not say which part that is (no `base_model_prefix`).
    """
    model = base_model(model)
    prefix = getattr(model, "base_model_prefix", "")
    if not has_backbone(model):
        raise ValueError(
            f"{type(model).__name__} has no backbone under base_model_prefix={prefix!r}; expected a Hugging Face "
            "AutoModelForCausalLM or AutoModelForSequenceClassification, or a PEFT model around one"
        )
    return getattr(model, prefix)


def has_backbone(model: nn.Module) -> bool:
    """Whether `model` says which part of it maps tokens to hidden states."""
    model = base_model(model)
    prefix = getattr(model, "base_model_prefix", "")
    return bool(prefix) and hasattr(model, prefix)


def hidden_size(model: nn.Module) -> int:
    """Width of the hidden states."""
    return base_model(model).config.get_text_config().hidden_size


def end_tokens(model: nn.Module, tokenizer: Any = None) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation configuration."""
    ends = getattr(getattr(base_model(model), "generation_config", None), "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    own = getattr(tokenizer, "eos_token_id", None)
    return tuple(dict.fromkeys(ends if own is None else [own, *ends]))


def context_length(model: nn.Module) -> int | None:
    """Longest sequence that the model takes, in tokens; None where its configuration does not say."""
    config = base_model(model).config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """`[B, T]`: the count of real tokens before each one, so that padding does not shift positions."""
    mask = attention_mask.long()
    return mask.cumsum(dim=1) - mask


def final_hidden_states(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Hidden states `[B, T, D]` after the final norm.

    Args:
        input_ids: `[B, T]`, int64; what stands at padding does not matter.
        attention_mask: `[B, T]`, bool: the real tokens, with padding on either side.
    """
    with host_waits(MASK_LOOKED_AT):
        return backbone(model)(
            input_ids=input_ids.masked_fill(~attention_mask, 0),
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask),
            use_cache=False,
        ).last_hidden_state


def packed_hidden_states(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """As `final_hidden_states`, but computed on one row `[1, total]` that holds the real tokens only.

    Positions that start again at zero tell transformers where one sequence ends (its packed attention masks); an
    accelerated model is told the bounds. What stands at padding in the result is zero.
    """
    with host_waits("how many tokens a micro-batch has"):
        kept = attention_mask.nonzero(as_tuple=True)
    hidden = packed_forward(model, input_ids, attention_mask, kept)
    return hidden.new_zeros(*attention_mask.shape, hidden.shape[-1]).index_put(kept, hidden[0])


def packed_forward(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    kept: tuple[torch.Tensor, ...] | None = None,
) -> torch.Tensor:
    """`[1, total, D]`: the backbone's output for the real tokens of all rows, one row after the other.

    Args:
        kept: their places, if they are known.
    """
    if kept is None:
        with host_waits("how many tokens a micro-batch has"):
            kept = attention_mask.nonzero(as_tuple=True)
    bounds = packed_bounds(attention_mask) if is_accelerated(model) else {}
    with host_waits(MASK_LOOKED_AT):
        return backbone(model)(
            input_ids=input_ids[kept][None],
            position_ids=position_ids(attention_mask)[kept][None],
            use_cache=False,
            **bounds,
        ).last_hidden_state


def joined_hidden_states(
    model: nn.Module, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: torch.Tensor, longest: int
) -> torch.Tensor:
    """`[1, T, D]`: hidden states of sequences that stand one after the other in a row, and do not see each other.

    Args:
        input_ids, position_ids: `[1, T]`; positions begin again at zero with each sequence.
        lengths: `[S]`, of the sequences, on the device; longest: of them, on the host.
    """
    bounds = {}
    if is_accelerated(model):
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        bounds = {"attention_mask": attention_interface.packed_mask(cu_seqlens), "max_length_q": longest}
    with host_waits(MASK_LOOKED_AT):
        return backbone(model)(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **bounds
        ).last_hidden_state


def hidden_states(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    packing: bool | None = None,
    *,
    padding_counts: bool = False,
) -> torch.Tensor:
    """Hidden states `[B, T, D]` after the final norm, right at real tokens.

    Args:
        packing: compute them on real tokens only; None: where the model's attention is ours.
        padding_counts: what stands at padding is to be what transformers' attention gives there.
    """
    if padding_counts:
        with attention_interface.padding_counts():
            return final_hidden_states(model, input_ids, attention_mask)
    packs = is_accelerated(model) if packing is None else packing
    return (packed_hidden_states if packs else final_hidden_states)(model, input_ids, attention_mask)


def is_accelerated(model: nn.Module) -> bool:
    """Whether the attention of `model` is ours (see `accelerate`)."""
    config = base_model(model).config.get_text_config()
    return getattr(config, "_attn_implementation", None) == attention_interface.NAME


def packed_bounds(attention_mask: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """What tells an accelerated model the bounds of the rows' real tokens, packed one after the other."""
    lengths = attention_mask.sum(dim=1)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    longest = attention_mask.shape[1]
    return {"attention_mask": attention_interface.packed_mask(cu_seqlens), "max_length_q": longest}


@contextmanager
def reference_mode(model: nn.Module, ref_adapter: str | None = None, policy_adapter: str | None = None):
    """Run a PEFT model as its own reference: adapters off, or `ref_adapter` in place of the policy's."""
    if ref_adapter is None:
        with model.disable_adapter():
            yield model
        return
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.set_adapter(ref_adapter)
    try:
        yield model
    finally:
        model.set_adapter(policy_adapter or "default")
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def evaluation_mode(model: nn.Module):
    """Evaluation mode for the block; afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def checkpoint_activations(model: nn.Module, kwargs: dict) -> None:
    """Have a Hugging Face model compute its activations again in the backward; a value head has none to save."""
    for enable in (
        "activation_checkpointing_enable",
        "gradient_checkpointing_enable",
    ):  # the second before 5.23
        if hasattr(model, enable):
            getattr(model, enable)(kwargs)
            return


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to zero: policy and reference must differ by their weights alone.

    They are `p` of dropout modules and plain numbers on others (`attention_dropout` of Llama, `dropout` and `layerdrop`
    of OPT, `hidden_dropout` of BLOOM).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, DROPOUT))):
                setattr(module, name, 0.0)
