"""What a checkpoint holds: policy, critic, optimizer, scheduler, random states, chosen products and progress."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerState
from transformers.trainer_callback import ExportableState

from fastrlhf.kernels import products
from fastrlhf.memory.hybrid_adam import HybridAdam
from fastrlhf.memory.sizes import parse_size
from fastrlhf.memory.streamed import load_values, model_values, named_tensors
from fastrlhf.memory.tensor_files import load_stored, stored_tensors, write_file
from fastrlhf.models.backbone import is_peft
from fastrlhf.ppo.merged import save_merged
from fastrlhf.ppo.streamed import adapter_state, save_streamed, streams
from fastrlhf.trainers.checkpoint import CheckpointError, check_checkpoint

if TYPE_CHECKING:
    from fastrlhf.ppo.online import OnlineTrainer

SHARD_SIZE = "200MB"
ADAPTER, CRITIC, REFERENCE, MOMENTS, TRAINING, PROGRESS, TRAINER_STATE = (
    "adapter",
    "critic.safetensors",
    "reference.safetensors",
    "moments.safetensors",
    "training.pt",
    "progress.json",
    "trainer_state.json",
)


@dataclass
class OnlineTrainerState(TrainerState):
    """`TrainerState` with the number of prompts seen so far."""

    episode: int = 0


def fresh_trainer_state(trainer: OnlineTrainer) -> OnlineTrainerState:
    """The counters and the log of a run that begins."""
    callbacks = [*trainer.callback_handler.callbacks, trainer.control]
    return OnlineTrainerState(
        is_local_process_zero=trainer.is_local_process_zero(),
        is_world_process_zero=trainer.is_world_process_zero(),
        stateful_callbacks=[callback for callback in callbacks if isinstance(callback, ExportableState)],
    )


def restore_trainer_state(trainer: OnlineTrainer, loaded: TrainerState, episode: int) -> None:
    """Take up the counters and the log of a checkpoint; callbacks stay this trainer's."""
    trainer.state = fresh_trainer_state(trainer)
    kept = {name: value for name, value in vars(loaded).items() if name != "stateful_callbacks"}
    vars(trainer.state).update(kept)
    trainer.state.episode = episode


def write_state(trainer: OnlineTrainer, folder: Path) -> None:
    """Write everything that a run needs to go on, and the policy so that `from_pretrained(folder)` loads it."""
    save_policy(trainer.policy_model, folder)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(folder)
    if is_peft(trainer.policy_model):
        save_adapter(trainer.policy_model, folder / ADAPTER)
    for name, (_, module) in others(trainer).items():
        save_critic(module, folder / name)
    training = {
        "optimizer": save_optimizer(trainer.optimizer, folder / MOMENTS),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "random": trainer.random_states,
        "products": products.export_table(),
    }
    torch.save(training, folder / TRAINING)
    trainer.state.save_to_json(str(folder / TRAINER_STATE))
    (folder / PROGRESS).write_text(json.dumps(progress(trainer), indent=1))


def read_state(trainer: OnlineTrainer, folder: Path) -> None:
    """Put a checkpoint back into a trainer built with the same arguments.

    Raises:
        CheckpointError: it is not whole, or is of another model, optimizer or seed.
    """
    check_checkpoint(folder)
    try:
        reached = json.loads((folder / PROGRESS).read_text())
        check_progress(trainer, reached, folder)
        loaded = type(trainer.state).load_from_json(str(folder / TRAINER_STATE))
        training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        # all that can be wrong is looked for before the first weight changes
        check_policy(trainer.policy_model, folder)
        check_others(trainer, folder)
        add_moments(trainer.optimizer, training["optimizer"], folder / MOMENTS)
        check_optimizer(trainer.optimizer, training["optimizer"])
        load_policy(trainer.policy_model, folder)
        for name, (_, module) in others(trainer).items():
            load_critic(module, folder / name)
        trainer.optimizer.load_state_dict(training["optimizer"])
        trainer.lr_scheduler.load_state_dict(training["scheduler"])
        products.import_table(training.get("products", {}))
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder} is a checkpoint of another model or optimizer ({error}): build the trainer with the arguments "
            "that it was written with, or train without resume_from_checkpoint"
        ) from error
    restore_trainer_state(trainer, loaded, reached["episode"])
    trainer.carry(reached)
    trainer.guard.skipped = reached["skipped_updates"]
    trainer.random_states = training["random"]


def progress(trainer: OnlineTrainer) -> dict[str, Any]:
    """Where the run stands, and what must not differ when it goes on."""
    return {
        "step": trainer.state.global_step,
        "episode": trainer.state.episode,
        "skipped_updates": trainer.guard.skipped,
        "must_match": {
            "seed": trainer.args.seed,
            "data_seed": trainer.data_seed,
            "batch_size": trainer.plan.rows,
            "num_generations": trainer.plan.num_generations,
            "prompts": len(trainer.train_dataset),
        },
        **trainer.carried(),
    }


def others(trainer: OnlineTrainer) -> dict[str, tuple[str, nn.Module]]:
    """The models beside the policy that a checkpoint holds: what they are, and they, by the name of their file."""
    found = {}
    if trainer.value_model is not None:
        found[CRITIC] = ("critic", trainer.value_model)
    if trainer.reference_changes:
        found[REFERENCE] = ("reference", trainer.ref_model)
    return found


def check_others(trainer: OnlineTrainer, folder: Path) -> None:
    """Raise ValueError unless the checkpoint holds these models, and no others."""
    expected = others(trainer)
    for name in (CRITIC, REFERENCE):
        if (folder / name).is_file() != (name in expected):
            raise ValueError(f"it holds {'no' if name in expected else 'a'} {name}")
    for name, (what, module) in expected.items():
        check_tensors(named_tensors(module), [folder / name], what)


def check_progress(trainer: OnlineTrainer, reached: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError unless the checkpoint is of a run with this data, batch and seed."""
    for name, here in progress(trainer)["must_match"].items():
        there = reached["must_match"].get(name)
        if there != here:
            raise CheckpointError(
                f"{folder} was written with {name}={there}, and this run has {name}={here}: "
                "set it back to resume, or train without resume_from_checkpoint"
            )


def check_tensors(expected: dict[str, torch.Tensor], files: list[Path], what: str) -> None:
    """Raise ValueError unless safetensors files hold tensors of the expected names and shapes, and no others.

    A tensor that is expected under several names (tied weights) need be there under one only.
    """
    there = stored_tensors(files)
    for name, stored in there.items():
        if name not in expected:
            raise ValueError(f"the {what} has no {name}")
        if stored.shape != tuple(expected[name].shape):
            raise ValueError(
                f"{name} of the {what} is {list(expected[name].shape)}, and {list(stored.shape)} there"
            )
    found = {id(expected[name]) for name in there}
    missing = [name for name, tensor in expected.items() if tensor.numel() and id(tensor) not in found]
    if missing:
        raise ValueError(f"{', '.join(missing[:3])} of the {what} is not there")


def check_policy(model: nn.Module, folder: Path) -> None:
    """Raise ValueError unless the checkpoint's policy is of this model's shape, adapter or all."""
    if is_peft(model):
        from peft.utils import get_peft_model_state_dict

        if not (folder / ADAPTER).is_dir():
            raise ValueError("it holds a policy without an adapter, and this one has one")
        name = model.active_adapter
        expected = get_peft_model_state_dict(model, named_tensors(model), adapter_name=name)
        check_tensors(expected, [_adapter_file(folder, name)], "adapter")
    elif (folder / ADAPTER).is_dir():
        raise ValueError("it holds a policy with an adapter, and this one has none")
    else:
        check_tensors(named_tensors(model), _shards(folder), "policy")


def check_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Raise ValueError unless a saved optimizer state is of these groups and parameters."""
    ours, theirs = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in ours] != [len(group["params"]) for group in theirs]:
        raise ValueError("the optimizer has other groups of parameters")
    ids = [number for group in theirs for number in group["params"]]
    parameters = [parameter for group in ours for parameter in group["params"]]
    for number, parameter in zip(ids, parameters, strict=True):
        for name, value in saved["state"].get(number, {}).items():
            if name != "step" and tuple(value.shape) != tuple(parameter.shape):
                raise ValueError(f"the optimizer's {name} is {list(value.shape)} for {list(parameter.shape)}")


def save_policy(model: nn.Module, folder: Path) -> None:
    """Write the policy as a plain Hugging Face model, adapters merged into a copy of the layers that they change."""
    if streams(model):
        save_streamed(model, folder, parse_size("SHARD_SIZE", SHARD_SIZE))
    elif is_peft(model):
        save_merged(model, folder, SHARD_SIZE)
    else:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write what was trained: a PEFT policy's adapters, or the whole policy."""
    if is_peft(model):
        save_adapter(model, folder)
    elif streams(model):
        save_policy(model, folder)
    else:
        model.save_pretrained(folder)


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a PEFT model; its base is not looked at."""
    model.save_pretrained(folder, state_dict=adapter_state(model))


def load_policy(model: nn.Module, folder: Path) -> None:
    """Load the trained weights of a policy, in place: the adapter's, or all of them."""
    if is_peft(model):
        from peft.utils import set_peft_model_state_dict

        name = model.active_adapter
        set_peft_model_state_dict(model, load_file(_adapter_file(folder, name)), adapter_name=name)
        return
    load_values(model, stored_tensors(_shards(folder)))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _adapter_file(folder: Path, adapter: str) -> Path:
    """Where PEFT writes an adapter: one that is not named "default" has a folder of its own."""
    home = folder / ADAPTER if adapter == "default" else folder / ADAPTER / adapter
    return home / "adapter_model.safetensors"


def save_critic(model: nn.Module, path: Path) -> None:
    """Write the weights of a critic (a value head, or a whole model) or of a reference."""
    write_file(path, model_values(model))


def load_critic(model: nn.Module, path: Path) -> None:
    """Load what `save_critic` wrote, in place."""
    load_values(model, stored_tensors([path]))


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> dict[str, Any]:
    """The state dict of an optimizer; moments that are not all in memory are written to `path`, and left out of it."""
    if not isinstance(optimizer, HybridAdam):
        return optimizer.state_dict()
    write_file(path, optimizer.state_values())
    return optimizer.state_dict(moments=False)


def add_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Put what `save_optimizer` has written to a file into the state dict: for an offloaded optimizer its places."""
    if not path.is_file():
        return
    for name, stored in stored_tensors([path]).items():
        number, moment = name.split(".")
        offloaded = isinstance(optimizer, HybridAdam)
        state["state"][int(number)][moment] = stored if offloaded else load_stored(stored)
