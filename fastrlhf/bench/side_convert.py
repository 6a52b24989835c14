"""Converts a model for CTranslate2, which is on the path: `python -m fastrlhf.bench.side_convert JOB RESULT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctranslate2.converters import TransformersConverter

from fastrlhf.bench import models
from fastrlhf.bench.sides import serve


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """Write `float32`, `int8` and `tokenizer` into the folder `job["into"]`."""
    into = Path(job["into"])
    model, tokenizer = models.policy_and_tokenizer(job["model"], ending=False)
    source = Path(job["folder"], "model")
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    for precision in ("float32", "int8"):
        TransformersConverter(str(source)).convert(str(into / precision), quantization=precision, force=True)
    tokenizer.save_pretrained(into / "tokenizer")
    return {}


if __name__ == "__main__":
    serve(convert)
