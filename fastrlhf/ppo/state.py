"""What a checkpoint holds: policy, critic, optimizer, scheduler, random states and progress."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerState

from fastrlhf.models.backbone import base_model, is_peft
from fastrlhf.ppo.checkpoint import CheckpointError, check_checkpoint

if TYPE_CHECKING:
    from fastrlhf.ppo.trainer import PPOTrainer

SHARD_SIZE = "200MB"
ADAPTER, CRITIC, TRAINING, PROGRESS, TRAINER_STATE = (
    "adapter",
    "critic.safetensors",
    "training.pt",
    "progress.json",
    "trainer_state.json",
)


def write_state(trainer: PPOTrainer, folder: Path) -> None:
    """Write everything that a run needs to go on, and the policy so that `from_pretrained(folder)` loads it."""
    save_policy(trainer.policy_model, folder)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(folder)
    if is_peft(trainer.policy_model):
        trainer.policy_model.save_pretrained(folder / ADAPTER)
    save_critic(trainer.model.value_model, folder / CRITIC)
    training = {
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "random": trainer.random_states,
    }
    torch.save(training, folder / TRAINING)
    trainer.state.save_to_json(str(folder / TRAINER_STATE))
    (folder / PROGRESS).write_text(json.dumps(trainer.progress(), indent=1))


def read_state(trainer: PPOTrainer, folder: Path) -> None:
    """Put a checkpoint back into a trainer built with the same arguments.

    Raises:
        CheckpointError: it is not whole, or is of another model, optimizer or seed.
    """
    check_checkpoint(folder)
    progress = json.loads((folder / PROGRESS).read_text())
    trainer.check_progress(progress, folder)
    try:
        load_policy(trainer.policy_model, folder)
        load_critic(trainer.model.value_model, folder / CRITIC)
        training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        trainer.optimizer.load_state_dict(training["optimizer"])
        trainer.lr_scheduler.load_state_dict(training["scheduler"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is a checkpoint of another model or optimizer: {error}") from error
    trainer.state = TrainerState.load_from_json(str(folder / TRAINER_STATE))
    trainer.restore_progress(progress)
    set_random_states(training["random"])


def save_policy(model: nn.Module, folder: Path) -> None:
    """Write the policy as a plain Hugging Face model, adapters merged into a copy of the layers that they change."""
    if not is_peft(model):
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        return
    base = base_model(model)
    base.save_pretrained(folder, state_dict=merged_state(model), max_shard_size=SHARD_SIZE)


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The base's state dict with the active adapters added in; the model itself keeps every bit.

    (Merging in place and unmerging changes the last bits of the base, and a resumed run must have the same.)
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = base_model(model)
    modules = dict(base.named_modules())
    tuned = {name: module for name, module in modules.items() if isinstance(module, BaseTunerLayer)}
    state = {}
    for name, tensor in base.state_dict().items():
        owner = name.rpartition(".")[0]
        layer = next((layer for layer in tuned if owner == layer or owner.startswith(f"{layer}.")), None)
        if layer is None:
            state[name.replace(".modules_to_save.default", "").replace(".original_module", "")] = tensor
        elif owner == f"{layer}.base_layer":
            kind = name.rpartition(".")[2]
            merged = tensor
            if kind == "weight":
                for adapter in tuned[layer].active_adapters:
                    merged = merged + tuned[layer].get_delta_weight(adapter).to(tensor.dtype)
            state[f"{layer}.{kind}"] = merged
    return state


def load_policy(model: nn.Module, folder: Path) -> None:
    """Load the trained weights of a policy, in place: the adapter's, or all of them."""
    if is_peft(model):
        from peft.utils import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / ADAPTER / "adapter_model.safetensors"))
        return
    state = model.state_dict()
    loaded = set()
    for shard in sorted(folder.glob("model*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open file is not a dict
                state[name].copy_(file.get_tensor(name))
                loaded.add(state[name].data_ptr())
    missing = [name for name, tensor in state.items() if tensor.numel() and tensor.data_ptr() not in loaded]
    if missing:
        raise ValueError(f"the checkpoint's policy lacks {', '.join(missing[:3])}")


def save_critic(model: nn.Module, path: Path) -> None:
    """Write the critic's weights (a value head, or a whole model)."""
    save_file({name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, path)


def load_critic(model: nn.Module, path: Path) -> None:
    """Load the critic's weights in place."""
    model.load_state_dict(load_file(path))


def random_states() -> dict[str, Any]:
    """The states of every global random generator that user code may draw from."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
