"""Who holds the simulated device's memory while a module trains: which kind of thing, of which of its modules.

with labelled(model):
    loss(model(batch)).backward()
    optimizer.step()
device.at_peak           # {"parameters / layers.0.mlp": ..., "activations / layers.3.mlp": ..., ...}
by_kind(device.at_peak)  # {"parameters": ..., "gradients": ..., ...}, which sum up to device.peak
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fastrlhf.device.ledger import Ledger
from fastrlhf.device.sim_tensor import SimTensor, active

_PASSING = "temporaries / "
_KEPT = "activations / "


@contextmanager
def labelled(module: nn.Module, name: str = "") -> Iterator[None]:
    """In the block memory of sim:0 is held under the kinds of `holdings.KINDS`, by the path of the module it is for.

    Parameters and buffers are named at once and at each call of `module`, gradients when they are complete, and the
    state of an optimizer (of `torch.optim`'s interface) after its step. What a forward allocates is a temporary of the
    innermost module, and an activation from the end of the outermost one's call if something still keeps it then and
    gradients are on. What a backward allocates is a temporary "backward". Whatever else knows better calls `hold`.

    Args:
        module: any module; its tensors may be anywhere, those on sim:0 are named.
        name: set before the paths, to tell several modules apart.
    """
    labeller = _Labeller(module, name, active())
    labeller.name_state()
    with labeller.hooked():
        yield


def hold(holder: str, tensors: Iterable[Any]) -> None:
    """The memory of those among `tensors` that are on sim:0 is held by `holder`, such as "cache / layers.0".

    Where tensors share a piece of memory, as views of one chunk do, the last name given holds all of it.
    """
    for tensor in tensors:
        if isinstance(tensor, SimTensor):
            tensor.allocation.piece.holder = holder


class _Labeller:
    def __init__(self, module: nn.Module, name: str, ledger: Ledger):
        self.module, self.ledger = module, ledger
        self.paths = {id(part): _join(name, path) for path, part in module.named_modules()}
        self.paths[id(module)] = name or type(module).__name__
        self.owners = {
            id(parameter): self.paths[id(part)]
            for part in module.modules()
            for parameter in part.parameters(recurse=False)
        }
        self._depth = 0
        self._entered_at = 0
        self._in_step = False

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Listen to the module, its parameters and the optimizers."""
        with ExitStack() as hooks:
            for part in self.module.modules():
                hooks.callback(part.register_forward_pre_hook(self._enter).remove)
                hooks.callback(part.register_forward_hook(self._leave, always_call=True).remove)
            for parameter in self.module.parameters():
                if parameter.requires_grad:
                    hooks.callback(parameter.register_post_accumulate_grad_hook(self._name_gradient).remove)
            hooks.callback(register_optimizer_step_pre_hook(self._begin_step).remove)
            hooks.callback(register_optimizer_step_post_hook(self._end_step).remove)
            before, self.ledger.backward_holder = self.ledger.backward_holder, _PASSING + "backward"
            try:
                yield
            finally:
                self.ledger.backward_holder = before
                if self._in_step:  # which ended with an error
                    self.ledger.leave()

    def name_state(self) -> None:
        """Name the parameters and buffers."""
        for part in self.module.modules():
            own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            hold(f"parameters / {self.paths[id(part)]}", own)

    def _enter(self, part: nn.Module, args: Any) -> None:
        if part is self.module:
            self.name_state()
        if not self._depth:
            self._entered_at = self.ledger.holdings.changes
        self._depth += 1
        self.ledger.enter(_PASSING + self.paths[id(part)])

    def _leave(self, part: nn.Module, args: Any, out: Any) -> None:
        self.ledger.leave()
        self._depth -= 1
        if self._depth or not torch.is_grad_enabled():
            return
        for piece in self.ledger.holdings.pieces:
            if piece.since > self._entered_at and piece.holder.startswith(_PASSING):
                piece.holder = _KEPT + piece.holder.removeprefix(_PASSING)

    def _name_gradient(self, parameter: nn.Parameter) -> None:
        hold(f"gradients / {self.owners[id(parameter)]}", [parameter.grad])

    def _begin_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._in_step = True
        self.ledger.enter(_PASSING + "optimizer")

    def _end_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._in_step = False
        self.ledger.leave()
        for parameter, state in optimizer.state.items():
            if id(parameter) in self.owners:
                hold(f"optimizer / {self.owners[id(parameter)]}", state.values())


def _join(name: str, path: str) -> str:
    return f"{name}.{path}" if name and path else name or path
