"""Module hooks that have a unit's pieces on the device while it runs, forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fastrlhf.memory.chunk import Chunk
from fastrlhf.memory.residency import Residency, Use


@dataclass(frozen=True)
class Needs:
    """What a unit needs on the device: the parameters of some chunks, and in a backward their gradients too.

    Attributes:
        name: for messages.
        inside: the names of those that run within it.
        looks_up: it is an embedding, whose backward does not read its parameters.
    """

    name: str
    chunks: tuple[Chunk, ...]
    inside: frozenset[str] = frozenset()
    looks_up: bool = False

    def forward(self, writes: bool = False) -> list[Use]:
        """What running it uses."""
        return [Use(chunk.parameters, writes) for chunk in self.chunks]

    def backward(self) -> list[Use]:
        """What its backward uses."""
        trained = [chunk for chunk in self.chunks if chunk.gradients is not None]
        gradients = [Use(chunk.gradients, writes=True, fresh=not chunk.has_gradients) for chunk in trained]
        return gradients if self.looks_up else self.forward() + gradients


class ModuleHooks:
    """Runs a model's units with their pieces on the device.

    In a forward they are there from a unit's start to its end. In a backward they come when the gradient of the unit's
    output is known, and go when the next unit's is: autograd runs what was computed later first, so by then nothing of
    the unit is left to do. A unit around others stays to the end.
    """

    def __init__(self, residency: Residency):
        self._residency = residency
        self._open: dict[str, tuple[Needs, list[Use], int]] = {}
        self._tasks: set[int] = set()  # the backward passes whose end is waited for

    def attach(self, module: nn.Module, needs: Needs) -> None:
        """Bring what `module` needs whenever it runs."""
        running: list[list[Use]] = []  # it may run within itself: checkpointed activations are computed again

        def bring_parameters(module: nn.Module, args: Any) -> None:
            self._forget_failed_backward()
            uses = needs.forward()
            self._residency.acquire(uses)
            running.append(uses)

        def let_parameters_go(module: nn.Module, args: Any, output: Any) -> None:
            if running:  # not if bringing them failed
                self._residency.release(running.pop())
                self._watch(output, needs)

        # (whoever runs the weights without the module knows these by their names: `using.MANAGER_HOOKS`)
        module.register_forward_pre_hook(bring_parameters)
        module.register_forward_hook(let_parameters_go, always_call=True)

    @contextmanager
    def use(self, needs: Needs, writes: bool = False) -> Iterator[None]:
        """Have what is needed on the device for the block, and again when a backward needs what the block saved."""
        self._forget_failed_backward()
        saving = self._saving(needs) if torch.is_grad_enabled() else nullcontext()
        with self._residency.using(needs.forward(writes)), saving:
            yield

    def _saving(self, needs: Needs) -> torch.autograd.graph.saved_tensors_hooks:
        def unpack(tensor: torch.Tensor) -> torch.Tensor:
            self._enter(needs)
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack)

    def _watch(self, output: Any, needs: Needs) -> None:
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda gradient: self._enter(needs))

    def _enter(self, needs: Needs) -> None:
        """The backward of a unit begins."""
        if needs.name in self._open:
            return
        self._leave(
            name for name, (other, _, _) in list(self._open.items()) if needs.name not in other.inside
        )
        task = torch._C._current_graph_task_id()
        if task not in self._tasks:
            self._tasks.add(task)
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._backward_ends(task))
        uses = needs.backward()
        self._residency.acquire(uses)
        self._open[needs.name] = (needs, uses, task)

    def _leave(self, names: Iterable[str]) -> None:
        for name in names:
            self._residency.release(self._open.pop(name)[1])

    def _backward_ends(self, task: int) -> None:
        self._tasks.discard(task)
        self._leave([name for name, (_, _, opened_in) in self._open.items() if opened_in == task])

    def _forget_failed_backward(self) -> None:
        """A backward that ended with an error did not say so."""
        if self._open and torch._C._current_graph_task_id() == -1:
            self._leave(list(self._open))
            self._tasks.clear()
