"""Models and tokenizers from the folders that trainers write: whole models, and adapters whose base lies elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

ADAPTER = "adapter_config.json"


def is_adapter(name: str) -> bool:
    """Whether `name` is a folder with an adapter alone."""
    return (Path(name) / ADAPTER).is_file() and not (Path(name) / "config.json").is_file()


def load_saved(name: str, auto_class: Any, **options: Any) -> nn.Module:
    """The model of a folder or of a name on the hub; an adapter is merged into its base.

    Args:
        auto_class: `AutoModelForCausalLM`, or another with `from_pretrained`.
        options: for `from_pretrained`.

    Raises:
        OSError, ValueError: there is no such model, or not the adapter's base.
    """
    if not is_adapter(name):
        return auto_class.from_pretrained(name, **options)
    from peft import PeftModel

    base = auto_class.from_pretrained(_base_of(name), **options)
    # PEFT froze the base
    return PeftModel.from_pretrained(base, name).merge_and_unload().requires_grad_(True)


def load_saved_tokenizer(name: str, **options: Any) -> Any:
    """The tokenizer of a folder or of a name on the hub; of an adapter without one, that of its base.

    Args:
        options: for `AutoTokenizer.from_pretrained`.

    Raises:
        OSError, ValueError: there is none.
    """
    from transformers import AutoTokenizer

    alone = is_adapter(name) and not (Path(name) / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(_base_of(name) if alone else name, **options)


def _base_of(adapter: str) -> str:
    path = Path(adapter) / ADAPTER
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{path} does not say which model the adapter is for (base_model_name_or_path)")
    return base
