"""Registers operations with `torch.library`, and spares plain tensors the way through PyTorch's dispatcher.

An operation has to be known to the dispatcher for torch.compile, meta tensors and tensor subclasses. On plain tensors
that way, with autograd, takes longer than many a kernel; `bench_ppo_loss` at [16, 64] shows what is left of it.
Operations that change their arguments (`adamw`, `rope_inplace`) are registered by `torch.library.custom_op`, which
counts their versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "fastrlhf"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operation:
    """A registered operation.

    Args:
        name: in `torch.ops.fastrlhf`.
        function: computes the outputs, on any device; they must not alias the inputs, which stay as they are. Its
            annotations are the schema.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name = name
        self.__doc__ = function.__doc__
        _library.define(name + torch.library.infer_schema(function, mutates_args=()))
        _library.impl(name, function, "CompositeExplicitAutograd")
        self._function = self._differentiable = function
        self._registered = getattr(getattr(torch.ops, NAMESPACE), name).default
        self.arguments = [argument.name for argument in self._registered._schema.arguments]

    def __call__(self, *args: Any) -> Any:
        if not all_plain(args):
            return self._registered(*args)
        return (self._differentiable if _wants_gradient(args) else self._function)(*args)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates the function that makes empty outputs of the right shapes and dtypes."""
        return torch.library.register_fake(f"{NAMESPACE}::{self.name}", fake, lib=_library)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[[Any, tuple, Any], None]
    ) -> None:
        """Make the operation differentiable.

        Args:
            backward: `(ctx, *grad_outputs)` to one gradient (or None) for each argument.
            setup_context: `(ctx, inputs, output)` keeps what `backward` needs.
        """

        def below_autograd(*args):
            with torch._C._AutoDispatchBelowAutograd():
                return self._registered(*args)

        differentiable = _with_gradient(self.name, below_autograd, setup_context, backward)

        def autograd(*args):
            return (differentiable if _wants_gradient(args) else below_autograd)(*args)

        _library.impl(self.name, autograd, "Autograd")
        self._differentiable = _with_gradient(self.name, self._function, setup_context, backward)


def operation(name: str) -> Callable[[Callable[..., Any]], Operation]:
    """Decorates a function that becomes the operation `fastrlhf::name`."""
    return lambda function: Operation(name, function)


def _with_gradient(
    name: str, run: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`run` as an autograd function."""

    def forward(ctx, *args):
        output = run(*args)
        setup_context(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods).apply


def all_plain(args: tuple[Any, ...]) -> bool:
    """Whether the operation alone has to see the call: no compiler, mode, subclass or meta tensor is there."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    for arg in args:
        if type(arg) in _PLAIN:
            if arg.is_meta:
                return False
        elif arg is not None and isinstance(arg, torch.Tensor):
            return False
    return torch._C._functorch.peek_interpreter_stack() is None


def _wants_gradient(args: tuple[Any, ...]) -> bool:
    if torch.is_grad_enabled():
        for arg in args:
            if arg is not None and isinstance(arg, torch.Tensor) and arg.requires_grad:
                return True
    return False
