"""`fastrlhf sft`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrlhf.commands.options import OptionError
from fastrlhf.commands.stage import Stage

OPTIONS = {
    "model": "a folder, or a name on the Hugging Face hub",
    "train_dataset": "a file of rows (.jsonl, .json, .csv, .tsv, .parquet), a folder of such, or a saved dataset",
    "eval_dataset": "the same, held out",
    "tokenizer": "a folder or a name; the model's own if left out",
    "peft": "arguments of peft.LoraConfig, to train an adapter; {r: 16, lora_alpha: 32, target_modules: all-linear}",
}
EXAMPLE = {
    "model": "HuggingFaceTB/SmolLM2-135M",
    "train_dataset": "train.jsonl",
    "output_dir": "runs/sft",
    "learning_rate": 2.0e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "packing": True,
    "save_total_limit": 2,
}


def _config() -> type:
    from fastrlhf.sft import SFTConfig

    return SFTConfig


def _build(args: Any, options: Mapping[str, Any]) -> Any:
    for name in ("model", "train_dataset"):
        if not options.get(name):
            raise OptionError(f"{name} is not set: {OPTIONS[name]}")
    from fastrlhf.data.files import load_file
    from fastrlhf.sft import SFTTrainer

    checks = {"on_bad_rows": args.on_bad_rows, "text_field": args.dataset_text_field}
    held_out = options.get("eval_dataset")
    tokenizer = None
    if options.get("tokenizer"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options["tokenizer"])
    return SFTTrainer(
        options["model"],
        args,
        train_dataset=load_file(options["train_dataset"], **checks),
        eval_dataset=load_file(held_out, split="test", **checks) if held_out else None,
        processing_class=tokenizer,
        peft_config=_adapter(options.get("peft")),
    )


def _adapter(options: Mapping[str, Any] | None) -> Any:
    if not options:
        return None
    from peft import LoraConfig

    return LoraConfig(**({"task_type": "CAUSAL_LM"} | dict(options)))


SFT = Stage(
    "sft", "fine-tune a model on texts, conversations or completions", _config, OPTIONS, EXAMPLE, _build
)
