"""The weights of a model under a memory manager, for a rollout: brought once and kept, or layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import nn

from fastrlhf.memory.manager import MemoryManager
from fastrlhf.memory.using import manager_of
from fastrlhf.models.backbone import backbone

Bring = Callable[[int | str], AbstractContextManager[None]]


@contextmanager
def weights_at_hand(model: nn.Module) -> Iterator[Bring | None]:
    """All weights of a causal language model on the device for the block, where there is room for them.

    Gives None then. Where there is none it gives what brings them part by part (see `Decoder.bring`), once a step for
    all rows.
    """
    manager = manager_of(model)
    if manager is None:
        yield None
    elif manager.fits(model):
        # without gradients here, not in the block: whoever asks for tokens one by one may go on with theirs in between
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(manager.use(model))
            kept = stack.pop_all()
        with kept:
            yield None
    else:
        yield _by_parts(model, manager)


def _by_parts(model: nn.Module, manager: MemoryManager) -> Bring:
    @functools.cache
    def parts() -> dict[int | str, nn.Module]:  # asked for where the family is known to have them
        return _parts(model)

    return lambda part: manager.use(parts()[part])


def _parts(model: nn.Module) -> dict[int | str, nn.Module]:
    inner = backbone(model)
    count = model.config.get_text_config().num_hidden_layers
    children = list(inner.children())
    layers = next(each for each in children if isinstance(each, nn.ModuleList) and len(each) == count)
    others = [child for child in children if child is not layers]
    embeddings = [child for child in others if isinstance(child, nn.Embedding)]
    parts: dict[int | str, nn.Module] = dict(enumerate(layers))
    parts["embedding"] = nn.ModuleList(embeddings)
    parts["norm"] = nn.ModuleList(child for child in others if child not in embeddings)
    parts["head"] = model.get_output_embeddings()
    return parts
