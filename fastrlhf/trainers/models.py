"""The models of a trainer, made of our operations and adapted."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

from torch import nn

from fastrlhf.models.accelerate import accelerate_quietly, is_hugging_face
from fastrlhf.models.backbone import base_model, is_accelerated, is_peft
from fastrlhf.models.frozen import bottom_pattern, depth_below


def accelerate_models(*models: Any) -> None:
    """Accelerate those that are Hugging Face models, with one notice for each family that is not known."""
    notices = {}
    for model in models:
        if isinstance(model, nn.Module) and is_hugging_face(base_model(model)):
            notices.setdefault(base_model(model).config.model_type, accelerate_quietly(model))
    for notice in filter(None, notices.values()):
        warnings.warn(notice, stacklevel=4)


def prepare_model(model: nn.Module, args: Any, peft_config: Any) -> nn.Module:
    """The model of our operations (unless `args.accelerate` is off), with the adapter that `peft_config` describes."""
    if args.accelerate:
        accelerate_models(model)
    model = with_adapter(model, peft_config)
    if args.accelerate and peft_config is not None:
        accelerate_quietly(model)  # the adapter's own layers
    if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant") and peft_config is not None:
        base_model(model).enable_input_require_grads()
    return model


def is_unpadded(model: nn.Module, args: Any, needed: bool = False) -> bool:
    """Whether batches are without padding: where that is needed, else where `args` says, else where the attention is
    ours."""
    return needed or (is_accelerated(model) if args.unpadded is None else args.unpadded)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy for a reference; what does not train in `model` is not copied, but shared."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, shared)


def with_adapter(model: nn.Module, peft_config: Any, trainable_layers: int | None = None) -> nn.Module:
    """The policy with the adapter that `peft_config` describes (or as it is, without one).

    Args:
        trainable_layers: the adapter goes on the top layers alone, so many of them.
    """
    if peft_config is not None:
        from peft import PeftConfig, get_peft_model

        if not isinstance(peft_config, PeftConfig):
            raise TypeError(f"peft_config is a {type(peft_config).__name__}, expected a peft.PeftConfig")
        if is_peft(model):
            raise ValueError("model is a PEFT model already: merge its adapter, or leave peft_config out")
        if trainable_layers is not None:
            peft_config = _on_top_layers(model, peft_config, trainable_layers)
        with warnings.catch_warnings():  # peft 0.21 reads a name that transformers 5.23 has renamed
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            model = get_peft_model(model, peft_config)
    if is_peft(model) and any(config.is_prompt_learning for config in model.peft_config.values()):
        raise ValueError("prompt-learning adapters (prefix or prompt tuning) are not supported: use LoRA")
    return model


def _on_top_layers(model: nn.Module, peft_config: Any, trainable_layers: int) -> Any:
    """The configuration, its adapters kept out of the layers below the top ones."""
    if peft_config.exclude_modules is not None:
        raise ValueError(
            "trainable_layers keeps the adapter out of the layers below by exclude_modules, and peft_config has one "
            "already: leave one of the two out"
        )
    pattern = bottom_pattern(model, depth_below(model, trainable_layers))
    return dataclasses.replace(peft_config, exclude_modules=pattern)


def check_auxiliary_loss(model: nn.Module, coefficient: float | None) -> None:
    """Raise ValueError where a mixture of experts is to be trained with its auxiliary loss."""
    config = base_model(model).config.get_text_config()
    own = getattr(config, "router_aux_loss_coef", 0.0)
    if own and coefficient is None and hasattr(config, "output_router_logits"):
        raise ValueError(
            f"{type(base_model(model)).__name__} is a mixture of experts with router_aux_loss_coef={own}, which is not "
            "supported: set router_aux_loss_coef=0.0 to train without it"
        )
