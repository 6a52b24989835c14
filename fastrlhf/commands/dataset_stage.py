"""Trainers on datasets of rows as commands: what they take beside their configuration, and how they are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrlhf.commands.parts import PEFT, TOKENIZER, adapter, require
from fastrlhf.commands.stage import Stage

OPTIONS = {
    "model": "a folder, or a name on the Hugging Face hub",
    "train_dataset": "a file of rows (.jsonl, .json, .csv, .tsv, .parquet), a folder of such, or a saved dataset",
    "eval_dataset": "the same, held out",
    "tokenizer": TOKENIZER,
    "peft": PEFT,
}
REF_MODEL = {"ref_model": "the reference, a folder or a name; the model before training if left out"}


def dataset_stage(
    name: str,
    help: str,
    prefix: str,
    example: Mapping[str, Any],
    *,
    task_type: str = "CAUSAL_LM",
    options: Mapping[str, str] | None = None,
) -> Stage:
    """The command of `fastrlhf.<prefix>Trainer`.

    Args:
        name, help, example: see `Stage`.
        prefix: of the names of the trainer and its configuration.
        task_type: of an adapter (see `peft.LoraConfig`).
        options: what it takes beside `OPTIONS`: a reference model, or nothing.
    """

    def config() -> type:
        import fastrlhf

        return getattr(fastrlhf, f"{prefix}Config")

    def build(args: Any, given: Mapping[str, Any]) -> Any:
        require(given, OPTIONS, "model", "train_dataset")
        import fastrlhf
        from fastrlhf.data.files import load_file

        checks = {
            "on_bad_rows": args.on_bad_rows,
            "text_field": getattr(args, "dataset_text_field", "text"),
        }
        held_out = given.get("eval_dataset")
        return getattr(fastrlhf, f"{prefix}Trainer")(
            given["model"],
            args=args,
            train_dataset=load_file(given["train_dataset"], **checks),
            eval_dataset=load_file(held_out, split="test", **checks) if held_out else None,
            processing_class=_tokenizer(given.get("tokenizer")),
            peft_config=adapter(given.get("peft"), task_type),
            **({"ref_model": _reference(given["ref_model"], args)} if given.get("ref_model") else {}),
        )

    return Stage(name, help, config, OPTIONS | dict(options or {}), example, build)


def _tokenizer(name: str | None) -> Any:
    if not name:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _reference(name: str, args: Any) -> Any:
    from fastrlhf.trainers.loading import load_model

    return load_model(name, args)
