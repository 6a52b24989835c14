"""The models of a run by their roles: made of our operations, adapted, frozen, placed, and sharing what is the same."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from fastrlhf.kernels.packed import limit_packed
from fastrlhf.memory.offload import offload
from fastrlhf.memory.sizes import parse_size
from fastrlhf.models.accelerate import accelerate_quietly
from fastrlhf.models.backbone import (
    base_model,
    checkpoint_activations,
    disable_dropout,
    has_backbone,
    reference_mode,
)
from fastrlhf.models.frozen import freeze_below, frozen_depth, share_bottom, splits
from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.frozen_states import FrozenStates
from fastrlhf.ppo.reference_states import ReferenceStates, stands_on
from fastrlhf.trainers.models import accelerate_models, frozen_copy, with_adapter
from fastrlhf.trainers.optimizer import HasOurAdamW


def prepare_policy(
    args: PPOConfig,
    model: nn.Module,
    ref_model: nn.Module | None,
    value_model: nn.Module | None,
    rewards: list[Any],
    peft_config: Any,
) -> nn.Module:
    """The policy with its adapter; all models made of our operations and frozen as `args` ask, in place."""
    if args.accelerate:
        accelerate_models(model, ref_model, value_model, *rewards)
        limit_packed(parse_size("packed_weight_bytes", args.packed_weight_bytes))
    model = with_adapter(model, peft_config, args.trainable_layers)
    if args.accelerate and peft_config is not None:
        accelerate_quietly(model)  # the adapter's own layers
    if args.trainable_layers is not None:
        freeze_bottom(args.trainable_layers, model, value_model)
    return model


def freeze_bottom(trainable_layers: int, model: nn.Module, value_model: nn.Module | None) -> None:
    """Leave the top layers to train, of the policy and of a critic with a base of its own (and its head)."""
    freeze_below(model, trainable_layers)
    if value_model is not None and has_backbone(value_model):
        freeze_below(value_model, trainable_layers)


def reference_copy(model: nn.Module, args: Any) -> nn.Module:
    """A copy for a reference, on the device where nothing is to leave it."""
    return frozen_copy(model if args.device_memory else model.to(args.device))


@torch.no_grad()
def mix_reference(policy: nn.Module, reference: nn.Module, alpha: float) -> None:
    """Move the reference's weights towards the policy's: `alpha policy + (1 - alpha) reference`.

    Source: Gorbatovski et al., "Learn your reference model for real good alignment" (2024), eq. 8.
    """
    theirs = dict(base_model(policy).named_parameters())
    for name, parameter in base_model(reference).named_parameters():
        if parameter.data_ptr() != theirs[name].data_ptr():  # not one that is frozen, and shared
            parameter.mul_(1 - alpha).add_(theirs[name], alpha=alpha)


class HasRoles(HasOurAdamW):
    """The part of a trainer that knows what its models are to each other.

    Attributes:
        model_adapter_name, ref_adapter_name: the adapters of a PEFT policy that are the policy and its reference;
            None: its only one, and the bare base.
    """

    model_adapter_name: str | None = None
    ref_adapter_name: str | None = None

    def place_models(self) -> None:
        """Frozen models in evaluation mode, all without dropout, all on the device."""
        frozen = [*self.scorer.models, *([] if self.ref_model is None else [self.ref_model])]
        for module in frozen:
            module.eval().requires_grad_(False)
        for module in (self.model, *frozen):
            disable_dropout(module)
            if self.args.device_memory is None:
                module.to(self.args.device)
        if self.args.gradient_checkpointing:
            kwargs = self.args.gradient_checkpointing_kwargs or {"use_reentrant": False}
            for module in filter(None, (self.policy_model, self.value_model)):
                checkpoint_activations(module, kwargs)

    def offload_models(self) -> None:
        """With `device_memory`, all models and the optimizer's state under one manager.

        (The scheduler, made before, goes on setting the learning rate: the optimizers share their groups.)
        """
        args = self.args
        if args.device_memory is None:
            return
        self.optimizer = offload(
            [self.model, *([] if self.ref_model is None else [self.ref_model]), *self.scorer.models],
            self.optimizer,
            device_memory=args.device_memory,
            host_memory=args.host_memory,
            disk=args.offload_dir,
            device=args.device,
            offload_activations=args.offload_activations,
        )

    def share_forwards(self) -> None:
        """Find what one forward can give to several roles."""
        self.share_bottom()
        self.share_reference()

    def share_bottom(self) -> None:
        """Find the layers that never change: they run once a rollout for policy, reference and a shared critic."""
        policy, args = self.policy_model, self.args
        depth = frozen_depth(policy) if args.packing is not False else 0
        depth = depth if depth and splits(policy, depth) else 0
        self.frozen_states = FrozenStates(
            policy, depth, parse_size("frozen_states_bytes", args.frozen_states_bytes)
        )
        self.reference_shares_bottom = self.ref_model is None or share_bottom(policy, self.ref_model, depth)

    def share_reference(self) -> None:
        """Find the reward models on the reference's own base: one forward a rollout gives the states of both."""
        sharers = []
        if self.needs.ref_logprobs:
            with self.reference() as reference:
                sharers = [
                    model for model in self.scorer.models if stands_on(model, reference, self.args.packing)
                ]
        limit = parse_size("frozen_states_bytes", self.args.frozen_states_bytes)
        self.reference_states = ReferenceStates(sharers, limit)

    @property
    def first_update_has_all_rows(self) -> bool:
        """Whether a rollout's first update is one forward of all its rows: the evaluation's own forward then does."""
        plan = self.plan
        in_one = plan.rows == plan.minibatch_rows == self.args.per_device_train_batch_size
        return in_one and not self.counts_padding

    @contextmanager
    def reference(self):
        """The reference policy, for the block."""
        if self.ref_model is not None:
            yield self.ref_model
        else:
            with reference_mode(self.policy_model, self.ref_adapter_name, self.model_adapter_name) as model:
                yield model

    @property
    def reuses_rollout_logprobs(self) -> bool:
        """Whether the generator's log-probabilities are the policy's old ones, or are evaluated again."""
        if self.args.reuse_rollout_logprobs is not None:
            return self.args.reuse_rollout_logprobs
        corrected, narrow = self.args.rollout_correction_cap is not None, self.args.bf16
        return not (corrected or narrow) and all(
            parameter.dtype == torch.float32
            for parameter in self.policy_model.parameters()
            if parameter.is_floating_point()
        )

    def autocast(self):
        """bfloat16 on a GPU where `args.bf16` says so."""
        if not self.args.bf16:
            return nullcontext()
        return torch.autocast(self.args.device.type, torch.bfloat16)
