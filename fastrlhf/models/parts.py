"""Norms and gated MLPs of Hugging Face models, made of our operations."""

from __future__ import annotations

import functools

import torch
from torch import nn
from transformers.activations import GELUActivation, GELUTanh, SiLUActivation

from fastrlhf.kernels import geglu, layer_norm, rms_norm, swiglu
from fastrlhf.models.recompute import computed_again


class LlamaNorm:
    """Forward of `LlamaRMSNorm` and those like it, with the residual's addition where one is given."""

    def forward(self, hidden_states, residual=None):
        hidden_states, residual, weight = in_one_dtype(hidden_states, residual, self.weight)
        return rms_norm(hidden_states, weight, eps=_eps(self), residual=residual)


class GemmaNorm:
    """Forward of `GemmaRMSNorm` and those like it: one is added to the weight, and the result rounded once."""

    def forward(self, hidden_states, residual=None):
        options = {"weight_offset": 1.0, "cast_before_weight": False}
        hidden_states, residual, weight = in_one_dtype(hidden_states, residual, self.weight)
        return rms_norm(hidden_states, weight, eps=_eps(self), residual=residual, **options)


class LayerNorm:
    """Forward of `nn.LayerNorm` over one dimension, with weight and bias."""

    def forward(self, hidden_states, residual=None):
        hidden_states, residual, weight, bias = in_one_dtype(hidden_states, residual, self.weight, self.bias)
        return layer_norm(hidden_states, weight, bias, eps=self.eps, residual=residual)


class GatedMLP:
    """Forward of `LlamaMLP` and those like it: the backward keeps gate and up, and not what is made of them."""

    def forward(self, hidden_states):
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        activated = self.activation(gate, up)
        with computed_again(activated, lambda: self.activation(gate, up)):
            return self.down_proj(activated)


def in_one_dtype(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors in the widest of their dtypes: under autocast a product's output is narrower than what it is added
    to and than the weights, and PyTorch promotes."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(dtypes) == 1:
        return list(tensors)
    widest = functools.reduce(torch.promote_types, dtypes)
    return [None if tensor is None else tensor.to(widest) for tensor in tensors]


def original_class(module: nn.Module) -> type:
    """The class that a module had before `accelerate` gave it one of ours (or has still)."""
    return getattr(type(module), "accelerated_from", type(module))


def rms_norm_part(module: nn.Module) -> type | None:
    """The forward that computes what an RMS norm of transformers does, tried out on it; None if it is none of them."""
    weight = getattr(module, "weight", None)
    if (
        not type(module).__name__.endswith("RMSNorm")
        or _eps(module) is None
        or weight is None
        or weight.is_meta
    ):
        return None
    if {name for name, _ in module.named_parameters()} != {"weight"}:
        return None
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(3, weight.shape[0], generator=generator).to(weight)
    expected = module(probe)
    for part in (LlamaNorm, GemmaNorm):
        found = part.forward(module, probe)
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-2, atol=1e-3):
            return part
    return None


def layer_norm_part(module: nn.Module) -> type | None:
    """`LayerNorm` for an `nn.LayerNorm` that it can replace."""
    plain = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
    return LayerNorm if plain and module.weight is not None and module.bias is not None else None


def gated_mlp_part(module: nn.Module) -> type | None:
    """`GatedMLP` for a module of three projections and an activation that it can replace."""
    names = {name for name, _ in module.named_children()}
    if not type(module).__name__.endswith("MLP") or names != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None
    activation = _gated_activation(module.act_fn)
    return None if activation is None else _gated_mlp(activation)


@functools.cache
def _gated_mlp(activation) -> type:
    return type("GatedMLP", (GatedMLP,), {"activation": staticmethod(activation)})


_geglu_tanh = functools.partial(geglu, approximate="tanh")


def _gated_activation(act_fn: nn.Module):
    """The operation that applies `act_fn` to a gate and multiplies; None for one that there is none for."""
    if isinstance(act_fn, (SiLUActivation, nn.SiLU)):
        return swiglu
    if isinstance(act_fn, GELUTanh) or (isinstance(act_fn, nn.GELU) and act_fn.approximate == "tanh"):
        return _geglu_tanh
    if isinstance(act_fn, (GELUActivation, nn.GELU)):
        return geglu
    return None


def _eps(module: nn.Module) -> float | None:
    """The epsilon, by either of the names that transformers has for it."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))
