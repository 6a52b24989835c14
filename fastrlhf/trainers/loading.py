"""The model and tokenizer of a trainer, from what was passed: loaded by name, and agreeing on their special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from fastrlhf.models.backbone import base_model


def load_model(
    model: str | nn.Module, args: Any, kind: type = AutoModelForCausalLM, **fixed: Any
) -> nn.Module:
    """The model itself, or the one of this name or path, in float32 unless `args.model_init_kwargs` says otherwise.

    Args:
        kind, fixed: of a model that is loaded: its `Auto` class, and options that cannot be set otherwise.

    Raises:
        ValueError: `model_init_kwargs` beside a model that is loaded already.
    """
    if not isinstance(model, str):
        if args.model_init_kwargs is not None:
            raise ValueError(
                "model_init_kwargs is set and model is loaded already: pass its name, or leave it out"
            )
        return model
    options = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
    options |= (args.model_init_kwargs or {}) | fixed
    if isinstance(options["dtype"], str) and options["dtype"] != "auto":
        options["dtype"] = getattr(torch, options["dtype"])
    return kind.from_pretrained(model, **options)


def load_tokenizer(processing_class: Any, model: nn.Module, args: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that was passed, or the model's own.

    Raises:
        TypeError: what was passed is no tokenizer.
        ValueError: there is none beside the model.
    """
    if processing_class is None:
        name = getattr(base_model(model).config, "_name_or_path", "")
        if not name:
            raise ValueError(
                "processing_class is None, and model does not say where it is from: pass its tokenizer"
            )
        revision = (args.model_init_kwargs or {}).get("revision")
        options = {"revision": revision} if revision else {}
        processing_class = AutoTokenizer.from_pretrained(
            name, trust_remote_code=args.trust_remote_code, **options
        )
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(
            f"processing_class is a {type(processing_class).__name__}, expected a tokenizer (images are not supported)"
        )
    return processing_class


def set_special_tokens(
    tokenizer: Any, model: nn.Module, eos_token: str | None, pad_token: str | None
) -> None:
    """Set the end and the pad token (else the end token pads: its labels say what counts), on the model's side too.

    Raises:
        ValueError: a token that the tokenizer does not have, or none to pad with.
    """
    whole = base_model(model)
    configs = [whole.config.get_text_config(), getattr(whole, "generation_config", None)]
    if eos_token is not None:
        tokenizer.eos_token = _known(tokenizer, "eos_token", eos_token)
        configs[0].eos_token_id = tokenizer.eos_token_id
        if configs[1] is not None:
            ends = configs[1].eos_token_id
            ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
            configs[1].eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
    pad = pad_token or tokenizer.pad_token or tokenizer.eos_token
    if pad is None:
        raise ValueError("the tokenizer has no pad token and no end token: set pad_token")
    tokenizer.pad_token = _known(tokenizer, "pad_token", pad)
    for config in configs:
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id


def set_chat_template(tokenizer: Any, path: str | None) -> None:
    """Read the tokenizer's chat template from a Jinja file.

    Raises:
        ValueError: another kind of path.
    """
    if path is None:
        return
    if not (Path(path).is_file() and path.endswith((".jinja", ".j2"))):
        raise ValueError(
            f"chat_template_path is {path!r}, expected a .jinja file; to take another model's template, set "
            "tokenizer.chat_template, and give the model rows for the tokens that it needs"
        )
    tokenizer.chat_template = Path(path).read_text(encoding="utf-8")


def _known(tokenizer: Any, name: str, token: str) -> str:
    if token not in tokenizer.get_vocab():
        raise ValueError(f"{name} is {token!r}, which the tokenizer does not have")
    return token
