"""A prompt, and what has been sampled for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from fastrlhf.generation.settings import Settings
from fastrlhf.generation.text import ResponseText


@dataclass
class Request:
    """A prompt, and what has been sampled for it so far.

    Attributes:
        index: its place among the requests.
        prompt: its tokens, at least one.
        row_id: what the random numbers are drawn for.
        text: reads the tokens, where text is asked for or stop strings are.
        finish_reason: "stop" or "length" once it has ended.
    """

    index: int
    prompt: tuple[int, ...]
    row_id: int
    settings: Settings
    text: ResponseText | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def positions(self) -> int:
        """The most positions of the cache that it writes: the last token that is sampled is never read again."""
        return len(self.prompt) + self.settings.max_new_tokens - 1

    @property
    def prefix(self) -> tuple[int, ...]:
        """What has to be in the cache before its first step, which reads the prompt's last token."""
        return self.prompt[:-1]

    def push(self, token: int, logprob: float, entropy: float) -> Event:
        """Take a sampled token."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.entropy.append(entropy)
        settings, may_stop = self.settings, len(self.tokens) >= self.settings.min_new_tokens
        is_stop = may_stop and token in settings.stop_token_ids
        if self.text is not None and not is_stop:
            self.text.push(token, may_stop=may_stop)
        if is_stop or (self.text is not None and self.text.stopped):
            self.finish_reason = "stop"
        elif len(self.tokens) == settings.max_new_tokens:
            self.finish_reason = "length"
        finished = self.finish_reason is not None
        return Event(
            self.index, token, None if self.text is None else self.text.piece(last=finished), finished
        )


class Event(NamedTuple):
    """A token that came: of which request, the text that became certain with it (None without a tokenizer), and
    whether it is the request's last."""

    request: int
    token: int
    text: str | None
    finished: bool


def not_a_number(request: Request, where: str = "") -> FloatingPointError:
    """The error of a row whose logits are NaN."""
    return FloatingPointError(
        f"the logits of row {request.index} are NaN at step {len(request.tokens)} of the generation{where}"
    )
