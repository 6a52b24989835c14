"""`fastrlhf generate`."""

from __future__ import annotations

import argparse
import sys

from fastrlhf.generation.flags import add_settings, load, settings_of


def add_generate(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("generate", help="complete prompts with a language model")
    parser.add_argument(
        "model", metavar="MODEL", help="a folder (an adapter's too) or a name on the Hugging Face hub"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="may be given several times (default: the lines of stdin)",
    )
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    parser.add_argument(
        "--stream", action="store_true", help="print the text as it comes, a prompt after the other"
    )
    parser.add_argument("--num-samples", type=int, default=1, help="completions of each prompt (default: 1)")
    parser.add_argument("--batch-size", type=int, help="rows at a time (default: all)")
    add_settings(parser, max_new_tokens=128)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    prompts = arguments.prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise SystemExit("fastrlhf generate: no prompt; give --prompt TEXT, or lines on stdin")
    model, tokenizer = load("generate", arguments.model)
    options = settings_of(arguments) | {"tokenizer": tokenizer}
    given = [_in_chat(tokenizer, prompt) for prompt in prompts] if arguments.chat else prompts
    try:
        if arguments.stream:
            _stream(model, prompts, given, arguments.num_samples, options)
        else:
            options |= {"num_samples": arguments.num_samples, "batch_size": arguments.batch_size}
            _print(model, prompts, given, options)
    except (ValueError, FloatingPointError) as error:
        raise SystemExit(f"fastrlhf generate: {error}") from None
    return 0


def _in_chat(tokenizer, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    return list(found["input_ids"]) if hasattr(found, "keys") else list(found)


def _print(model, prompts: list[str], given: list, options: dict) -> None:
    from fastrlhf.generation.api import generate

    samples = options["num_samples"]
    for number, completion in enumerate(generate(model, given, **options)):
        _head(prompts[number // samples], len(prompts))
        print(completion.text)


def _stream(model, prompts: list[str], given: list, samples: int, options: dict) -> None:
    from fastrlhf.generation.api import generate

    for prompt, tokens in zip(prompts, given, strict=True):
        for sample in range(samples):
            _head(prompt, len(prompts))
            seed = options["seed"] + sample
            for event in generate(model, [tokens], **{**options, "seed": seed}, stream=True):
                print(event.text, end="", flush=True)
            print()


def _head(prompt: str, prompts: int) -> None:
    if prompts > 1:
        print(f"== {prompt}")
