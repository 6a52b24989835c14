"""The trainers' arguments, made into models, tokenizers and datasets, and refused where they cannot be meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fastrlhf.grpo.config import GroupConfig
from fastrlhf.models.backbone import DROPOUT, base_model, is_peft
from fastrlhf.ppo.arguments import as_list


def refuse(**given: Any) -> None:
    """Raise ValueError for the first of TRL's arguments that is not supported, and is not None."""
    instead = {
        "quantization_config": "load the model as it is to be, and pass it",
        "tools": "completions call no tools",
        "rollout_func": "override the trainer's generate_responses",
        "environment_factory": "completions have no environment; a reward function sees them whole",
    }
    for name, value in given.items():
        if value:
            raise ValueError(f"{name} is not supported: {instead[name]}")


def load_policy(model: str | nn.Module, args: GroupConfig) -> nn.Module:
    """The model, read in float32 (unless `args.model_init_kwargs` says otherwise) where it is given by name."""
    if not isinstance(model, str):
        if args.model_init_kwargs is not None:
            raise ValueError(
                "model_init_kwargs are for a model that is given by name, and model is one itself"
            )
        return model
    return AutoModelForCausalLM.from_pretrained(model, **_init_kwargs(args))


def load_tokenizer(model: nn.Module, given: Any, args: GroupConfig) -> Any:
    """The tokenizer, read from where the model is from where none is given."""
    if given is None:
        given = AutoTokenizer.from_pretrained(
            base_model(model).config._name_or_path,
            truncation_side="left",
            padding_side="left",
            trust_remote_code=args.trust_remote_code,
        )
    if not hasattr(given, "convert_tokens_to_ids"):
        raise TypeError(
            f"processing_class is a {type(given).__name__}, expected a tokenizer: models read text alone"
        )
    return given


def load_rewards(
    reward_funcs: str | nn.Module | Callable | list, processing_classes: Any, args: GroupConfig
) -> tuple[list[nn.Module | Callable], list[Any]]:
    """Reward models and functions, models by name read from there; and the tokenizer of each model."""
    if reward_funcs is None:
        raise ValueError("reward_funcs is None: pass at least one reward")
    functions = [
        AutoModelForSequenceClassification.from_pretrained(each, num_labels=1, **_init_kwargs(args))
        if isinstance(each, str)
        else each
        for each in as_list(reward_funcs)
    ]
    tokenizers = [None] * len(functions) if processing_classes is None else as_list(processing_classes)
    return functions, [
        _reward_tokenizer(function, tokenizer, args) if isinstance(function, nn.Module) else None
        for function, tokenizer in zip(functions, tokenizers, strict=False)
    ] + [None] * (len(tokenizers) - len(functions))


def check_dropout(model: nn.Module) -> None:
    """Raise ValueError where a model has dropout: policy and rollout would differ by more than their weights."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            is_rate = "drop" in key or (key == "p" and isinstance(module, DROPOUT))
            if is_rate and isinstance(value, float) and value > 0:
                raise ValueError(
                    f"{name or type(module).__name__} of the model has dropout ({key}={value}), which is not "
                    "supported here: set disable_dropout=True, or lora_dropout=0"
                )


def check_reference(args: GroupConfig, model: nn.Module, ref_model: nn.Module | None) -> None:
    """Raise ValueError where the reference is to move, and is no model of its own."""
    if args.sync_ref_model and is_peft(model) and ref_model is None:
        raise ValueError(
            "sync_ref_model moves the reference, which here is the policy's own base with the adapter off: leave "
            "sync_ref_model or the adapter out"
        )


def check_router(model: nn.Module, args: GroupConfig) -> None:
    """Raise ValueError where TRL would add a mixture of experts' load-balancing loss."""
    config = base_model(model).config.get_text_config()
    coef = getattr(config, "router_aux_loss_coef", 0.0)
    if hasattr(config, "output_router_logits") and coef and args.router_aux_loss_coef is None:
        raise ValueError(
            f"{type(base_model(model)).__name__} has a load-balancing loss (router_aux_loss_coef={coef}), which is not "
            "supported: set router_aux_loss_coef=0.0 to train without"
        )


def _init_kwargs(args: GroupConfig) -> dict[str, Any]:
    return {
        "dtype": torch.float32,
        "trust_remote_code": args.trust_remote_code,
        **(args.model_init_kwargs or {}),
    }


def _reward_tokenizer(model: nn.Module, tokenizer: Any, args: GroupConfig) -> Any:
    config = base_model(model).config
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(
            config._name_or_path, trust_remote_code=args.trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    return tokenizer
