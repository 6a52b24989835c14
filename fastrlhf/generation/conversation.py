"""A conversation with a model, as the tokens that it is to go on from."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError


class Conversation:
    """Turns of a user and a model; the oldest ones are forgotten where all would be too long.

    With a chat template the turns are messages. Without one they are lines of a text that the model goes on with.

    Args:
        tokenizer: of the model.
        system: instructions that come before all turns, and are never forgotten.
        longest: the most tokens that the model may be given; None: any number.

    Attributes:
        forgotten: how many turns have been forgotten.
    """

    def __init__(self, tokenizer: Any, system: str | None = None, longest: int | None = None):
        self._tokenizer, self._longest = tokenizer, longest
        self._system = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._turns: list[dict[str, str]] = []
        self.forgotten = 0

    def ask(self, text: str) -> list[int]:
        """Take the user's turn; returns the tokens that the model's turn follows.

        Raises:
            ValueError: the turn alone is too long, or the chat template refuses the messages; the turn is taken back.
        """
        self._turns.append({"role": "user", "content": text})
        try:
            tokens = self._tokens()
            while self._longest is not None and len(tokens) > self._longest:
                if len(self._turns) == 1:
                    raise ValueError(
                        f"this takes {len(tokens)} tokens, and {self._longest} is the most that leave room for "
                        "max_new_tokens in the model's context"
                    )
                del self._turns[:2]
                self.forgotten += 1
                tokens = self._tokens()
        except ValueError:
            self.take_back()
            raise
        return tokens

    def answer(self, text: str) -> None:
        """Take the model's turn."""
        self._turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Forget the last turn, as if it had not been."""
        del self._turns[-1:]

    def _tokens(self) -> list[int]:
        messages = [*self._system, *self._turns]
        if self._tokenizer.chat_template is None:
            ends = {"system": "\n", "user": "", "assistant": "\n"}
            return self._tokenizer("".join(each["content"] + ends[each["role"]] for each in messages))[
                "input_ids"
            ]
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from None
