"""The text of a response while its tokens come, and whether a stop string is in it."""

from __future__ import annotations

from typing import Any

# What a tokenizer decodes the beginning of a character to.
UNFINISHED = "\ufffd"


class ResponseText:
    """Text that grows by tokens; it ends before the first of its stop strings.

    Attributes:
        text: all that is known of it.
        stopped: whether a stop string came.
    """

    def __init__(self, tokenizer: Any, stop_strings: tuple[str, ...] = ()):
        self._tokenizer, self._stops = tokenizer, stop_strings
        self._held_back = max(map(len, stop_strings), default=1) - 1
        self._tokens: list[int] = []
        # tokens[before:read] gave the text read last; decoded again with what follows, since the beginning of a word
        # looks different where it is the first
        self._before, self._read, self._shown = 0, 0, 0
        self.text, self.stopped = "", False

    def push(self, token: int, *, may_stop: bool = True) -> None:
        """Read one token more."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._before : self._read])
        now = self._decode(self._tokens[self._before :])
        if len(now) <= len(known) or now.endswith(UNFINISHED):
            return
        # where a stop string can begin that was not whole before
        start = max(0, len(self.text) - self._held_back)
        self.text += now[len(known) :]
        self._before, self._read = self._read, len(self._tokens)
        places = [place for stop in self._stops if may_stop and (place := self.text.find(stop, start)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def piece(self, *, last: bool) -> str:
        """The text that has become certain since this was asked; what may be a stop string's beginning is held back."""
        end = len(self.text)
        if not last and not self.stopped:
            end = max(self._shown, end - self._held_back)
        piece, self._shown = self.text[self._shown : end], end
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
