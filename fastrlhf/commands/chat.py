"""`fastrlhf chat`."""

from __future__ import annotations

import argparse
import difflib
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastrlhf.generation.flags import add_settings, load, settings_of
from fastrlhf.report.text import printable

QUIT, RESET = "/quit", "/reset"
_COMMAND = re.compile(r"/\w+")


def add_chat(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to a model",
        description=f"Talk to a model in the terminal, or through a pipe. {RESET} begins anew, {QUIT} leaves, and "
        "Ctrl-C stops an answer.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a folder (an adapter's too) or a name on the Hugging Face hub"
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions that come before all turns")
    add_settings(parser, max_new_tokens=512)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    model, tokenizer = load("chat", arguments.model)
    from fastrlhf.generation.conversation import Conversation
    from fastrlhf.models.backbone import context_length, end_tokens

    limit = context_length(model)
    longest = None if limit is None else limit - arguments.max_new_tokens
    if longest is not None and longest < 1:
        raise SystemExit(
            f"fastrlhf chat: --max-new-tokens {arguments.max_new_tokens} leaves no room for a prompt in the model's "
            f"context of {limit}"
        )
    talk = Conversation(tokenizer, arguments.system, longest)
    settings = settings_of(arguments) | {
        "tokenizer": tokenizer,
        "stop_token_ids": end_tokens(model, tokenizer),
    }
    if sys.stdin.isatty():
        template = "" if tokenizer.chat_template else "; there is no chat template: it goes on with your text"
        _say(f"Ctrl-C stops an answer, {RESET} begins anew, {QUIT} leaves{template}")
    try:
        for line in _lines():
            if line == QUIT:
                break
            if line == RESET:
                talk.reset()
            elif _COMMAND.fullmatch(line):
                nearest = difflib.get_close_matches(line, (QUIT, RESET), n=1)
                _say(
                    f"{line} is no command; "
                    + (f"did you mean {nearest[0]}?" if nearest else f"{RESET}, {QUIT}")
                )
            else:
                _take_turn(model, talk, line, settings)
                settings["seed"] += 1
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def _lines() -> Iterator[str]:
    """What is typed, or the lines of a pipe; empty ones are passed over."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - the arrow keys work in input() from here on

        read = _typed
    else:
        read = _piped
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        if line:
            yield line


def _typed() -> str:
    return input("> ")


def _piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _take_turn(model: Any, talk: Any, line: str, settings: dict[str, Any]) -> None:
    """Print the answer as it comes; one that is stopped is remembered as far as it came."""
    from fastrlhf.generation.api import generate

    before = talk.forgotten
    try:
        prompt = talk.ask(line)
    except ValueError as error:
        _say(error)
        return
    if talk.forgotten > before:
        _say("the conversation has become too long: its first turns are forgotten")
    show = printable if sys.stdout.isatty() else str
    answer = ""
    try:
        with _interrupts() as interrupts:
            for event in generate(model, [prompt], stream=True, **settings):
                answer += event.text
                print(show(event.text), end="", flush=True)
                if interrupts:
                    break
    except KeyboardInterrupt:
        pass
    except (ValueError, FloatingPointError) as error:
        talk.take_back()
        _say(error)
        return
    print(flush=True)
    talk.answer(answer)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The Ctrl-C's that came; only a second one raises: an exception can be lost in a callback of PyTorch's."""
    seen = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _say(message: object) -> None:
    print(f"fastrlhf chat: {message}", file=sys.stderr, flush=True)
