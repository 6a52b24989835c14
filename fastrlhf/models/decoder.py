"""What a generator needs to know of a Hugging Face model: its weights, and how its layers go together.

A description holds the modules' own tensors and copies nothing. It is made anew for each rollout, since a tensor may
have been put in another's place meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import starmap
from typing import NamedTuple

import torch
from torch import nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation
from transformers.pytorch_utils import Conv1D

from fastrlhf.kernels import QuantizedWeight
from fastrlhf.memory.using import MANAGER_HOOKS
from fastrlhf.models.parts import original_class
from fastrlhf.models.quantized import QuantizedLinear, base_weight


class CannotDescribe(Exception):
    """Why a model has no description."""


class Norm(NamedTuple):
    """Layer norm with a bias, RMS norm without; arguments as `fastrlhf.kernels.rms_norm` and `layer_norm`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    weight_offset: float = 0.0
    cast_before_weight: bool = True


class Adapter(NamedTuple):
    """Adds `scaling (up (down x) + bias)`; down `[r, in]`, up `[out, r]`."""

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    scaling: float


class Projection(NamedTuple):
    """`x weight^T + bias`, and the adapters on it; `weight` is `[out, in]`, or `[in, out]` where `transposed`."""

    weight: torch.Tensor | QuantizedWeight
    bias: torch.Tensor | None
    adapters: tuple[Adapter, ...] = ()
    transposed: bool = False

    @property
    def out_features(self) -> int:
        return self.weight.shape[1 if self.transposed else 0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[0 if self.transposed else 1]


class Attention(NamedTuple):
    """Projections to query, key and value: three, or one whose columns are laid out as `fused` says: "chunks" (all
    queries, then all keys, then all values) or "heads" (of each head its query, key and value)."""

    projections: tuple[Projection, ...]
    fused: str | None
    output: Projection
    heads: int
    key_heads: int
    width: int
    scale: float
    window: int | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None


class MLP(NamedTuple):
    """`down(activation(gate x) * up x)`, or `down(activation(up x))` without a gate; activations as in `glu`."""

    gate: Projection | None
    up: Projection
    down: Projection
    activation: str


class Layer(NamedTuple):
    """`h += attention(norm(h))`, then `h += mlp(norm(h))`; in a parallel layer both read the same h."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MLP
    parallel: bool = False


class Decoder(NamedTuple):
    """A causal language model: token (and position) embedding, layers, final norm and head.

    Attributes:
        rotary: transformers' module that gives the angles of positions, or None.
        longest: positions after which the angles depend on the length of the longest sequence; None: never.
        bring: for a model whose weights are elsewhere (see `fastrlhf.offload`): gives a context that has a part of them
            on the device, a layer by its number, or "embedding", "norm" (the final one) or "head". None: all are there.
    """

    embedding: torch.Tensor
    embedding_scale: float
    position_embedding: torch.Tensor | None
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Projection
    rotary: nn.Module | None
    longest: int | None = None
    bring: Callable[[int | str], AbstractContextManager[None]] | None = None

    def having(self, part: int | str) -> AbstractContextManager[None]:
        """A block with the weights of a part on the device: see `bring`."""
        return nullcontext() if self.bring is None else self.bring(part)

    def projections(self) -> Iterator[Projection]:
        """All of the layers' projections, and the head."""
        for layer in self.layers:
            attention, mlp = layer.attention, layer.mlp
            yield from (*attention.projections, attention.output, mlp.up, mlp.down)
            if mlp.gate is not None:
                yield mlp.gate
        yield self.head

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every weight, adapters among them; of a quantised one its codes."""
        norms = [self.final_norm]
        for layer in self.layers:
            of_layer = (
                layer.attention_norm,
                layer.mlp_norm,
                layer.attention.query_norm,
                layer.attention.key_norm,
            )
            norms += [norm for norm in of_layer if norm is not None]
        yield self.embedding
        for weight, bias, *_ in norms:
            yield from (tensor for tensor in (weight, bias) if tensor is not None)
        for weight, bias, adapters, _ in self.projections():
            yield weight.codes if isinstance(weight, QuantizedWeight) else weight
            if bias is not None:
                yield bias
            for adapter in adapters:
                yield from (tensor for tensor in adapter[:3] if tensor is not None)

    def map_projections(self, change: Callable[[Projection], Projection]) -> Decoder:
        """A decoder with `change(projection)` in the place of each layer's projections."""

        def of_layer(index: int, layer: Layer) -> Layer:
            attention, mlp = layer.attention, layer.mlp
            with self.having(index):
                return layer._replace(
                    attention=attention._replace(
                        projections=tuple(map(change, attention.projections)), output=change(attention.output)
                    ),
                    mlp=mlp._replace(
                        gate=None if mlp.gate is None else change(mlp.gate),
                        up=change(mlp.up),
                        down=change(mlp.down),
                    ),
                )

        return self._replace(layers=tuple(starmap(of_layer, enumerate(self.layers))))

    @torch.no_grad()
    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """cos and sin `[T, R]`, float32, of positions `[T]`, by the model's own rotary module."""
        if self.rotary is None:
            return None
        like = torch.zeros(1, dtype=torch.float32, device=positions.device)
        cos, sin = self.rotary(like, positions[None])
        return cos[0].contiguous(), sin[0].contiguous()


def norm(module: nn.Module, *, weight_offset: float = 0.0, cast_before_weight: bool = True) -> Norm:
    """The description of a norm module."""
    check_plain(module)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    bias = getattr(module, "bias", None)
    if module.weight is None or eps is None or (isinstance(module, nn.LayerNorm) and bias is None):
        raise CannotDescribe(f"{type(module).__name__} has no weight, bias or eps where one is expected")
    return Norm(module.weight, bias, eps, weight_offset, cast_before_weight)


def projection(module: nn.Module) -> Projection:
    """The description of an `nn.Linear` (quantised or not), a `Conv1D`, or one with LoRA adapters of PEFT on it."""
    check_plain(module)
    if original_class(module) in (nn.Linear, QuantizedLinear):
        return Projection(base_weight(module), module.bias)
    if type(module) is Conv1D:
        return Projection(module.weight, module.bias, transposed=True)
    if hasattr(module, "lora_A") and type(module).__name__ == "Linear":
        return _adapted(module)
    raise CannotDescribe(f"a projection is a {type(module).__module__}.{type(module).__name__}")


def _adapted(module: nn.Module) -> Projection:
    """As PEFT's own forward decides: an adapter that is disabled, merged, or not active adds nothing."""
    if module.disable_adapters and module.merged:
        module.unmerge()
    base = projection(module.base_layer)
    if module.disable_adapters or module.merged:
        return base
    active = [name for name in module.active_adapters if name in module.lora_A]
    if variant := [name for name in active if name in module.lora_variant]:
        raise CannotDescribe(
            f"the adapter {variant[0]!r} is a variant of LoRA ({_variant(module, variant[0])})"
        )
    return base._replace(adapters=tuple(_adapter(module, name) for name in active))


def _variant(module: nn.Module, name: str) -> str:
    return type(module.lora_variant[name]).__name__


def _adapter(module: nn.Module, name: str) -> Adapter:
    down, up = module.lora_A[name], module.lora_B[name]
    for part in (down, up, module.lora_dropout[name]):
        check_plain(part)
    return Adapter(down.weight, up.weight, up.bias, float(module.scaling[name]))


def activation(act_fn: nn.Module) -> str:
    """The name that `glu` has for an activation."""
    if isinstance(act_fn, (SiLUActivation, nn.SiLU)):
        return "silu"
    tanh = isinstance(act_fn, nn.GELU) and act_fn.approximate == "tanh"
    if tanh or isinstance(act_fn, (GELUTanh, NewGELUActivation)):
        return "gelu_tanh"
    if isinstance(act_fn, (GELUActivation, nn.GELU)):
        return "gelu"
    raise CannotDescribe(f"its activation is {type(act_fn).__name__}")


# Hooks that change no number: transformers' and PEFT's for gradient checkpointing and for those who ask for hidden
# states, and the memory manager's, in whose place `Decoder.bring` comes.
_HARMLESS_HOOKS = (
    "make_inputs_require_grad",
    "make_inputs_require_grads",
    "output_capturing_hook",
    *MANAGER_HOOKS,
)


def check_plain(module: nn.Module) -> None:
    """Raise CannotDescribe where a hook would not run, since the module's forward does not."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(getattr(hook, "__name__", "") not in _HARMLESS_HOOKS for hook in hooks):
        raise CannotDescribe(f"a {type(module).__name__} has forward hooks, which want its own forward")
