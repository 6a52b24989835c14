"""What the commands of several trainers make of their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrlhf.commands.options import OptionError

MODEL = "a folder (an adapter's too, which is merged into its base), or a name on the Hugging Face hub"
TOKENIZER = "a folder or a name; the model's own if left out"
PEFT = (
    "arguments of peft.LoraConfig, to train an adapter; {r: 16, lora_alpha: 32, target_modules: all-linear}"
)
PROMPTS = (
    "rows with `prompt`, a text or messages: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder of such, or a "
    "saved dataset"
)
ON_BAD_ROWS = (
    "stop: name the first rows that cannot be used; skip: leave them out with a warning (stop if left out)"
)


def require(options: Mapping[str, Any], help: Mapping[str, str], *names: str) -> None:
    """Raise OptionError for the first of these options that is not set."""
    for name in names:
        if not options.get(name):
            raise OptionError(f"{name} is not set: {help[name]}")


def adapter(options: Mapping[str, Any] | None, task_type: str = "CAUSAL_LM") -> Any:
    """The `peft.LoraConfig` of the option `peft`; None without one."""
    if not options:
        return None
    from peft import LoraConfig

    return LoraConfig(**({"task_type": task_type} | dict(options)))


def prompts(options: Mapping[str, Any], name: str, split: str = "train") -> Any:
    """The checked rows of the option `name`, each with a prompt; None without one."""
    if not options.get(name):
        return None
    from fastrlhf.data.files import load_file
    from fastrlhf.data.rows import PROMPT

    on_bad_rows = options.get("on_bad_rows") or "stop"
    return load_file(options[name], kind=PROMPT, split=split, on_bad_rows=on_bad_rows)
