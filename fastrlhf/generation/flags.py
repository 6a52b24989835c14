"""What the commands that generate have in common: their flags, and the model they load."""

from __future__ import annotations

import argparse
from typing import Any


def add_settings(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add the flags that say how completions are sampled and where they end."""
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=0, help="default: %(default)s, all")
    parser.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--min-p", type=float, default=0.0, help="default: %(default)s")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="a text that ends a completion"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--int8", action="store_true", help="compute with weights in 8 bits")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those flags as arguments of `fastrlhf.generate`."""
    return {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "stop_strings": arguments.stop,
        "seed": arguments.seed,
        "weights": "int8" if arguments.int8 else None,
    }


def load(command: str, name: str) -> tuple[Any, Any]:
    """The model of a folder (an adapter's too) or of a name on the hub, where it runs fastest, and its tokenizer.

    Raises:
        SystemExit: they cannot be loaded; the message says why.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from fastrlhf.models.saved import load_saved, load_saved_tokenizer

    on_gpu = torch.cuda.is_available()
    try:
        tokenizer = load_saved_tokenizer(name)
        # our kernels on a CPU are float32's
        model = load_saved(name, AutoModelForCausalLM, dtype="auto" if on_gpu else torch.float32)
    except (OSError, ValueError) as error:
        raise SystemExit(f"fastrlhf {command}: {name} cannot be loaded: {error}") from None
    return model.eval().to("cuda" if on_gpu else "cpu"), tokenizer
