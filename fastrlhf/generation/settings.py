"""How a response is sampled and where it ends."""

from __future__ import annotations

from dataclasses import dataclass

from fastrlhf.kernels.checks import check_at_least


@dataclass(frozen=True)
class Settings:
    """Of one request; see `fastrlhf.generate`."""

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be meant."""
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        check_at_least("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, expected at most max_new_tokens={self.max_new_tokens}"
            )
        for name in ("temperature", "top_k", "seed"):
            check_at_least(name, getattr(self, name), 0)
        check_at_least("repetition_penalty", self.repetition_penalty, 0, strict=True)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected a number in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}, expected a number in [0, 1]")
        if self.seed >= 2**64:
            raise ValueError(f"seed is {self.seed}, expected less than 2**64")
        if any(not text for text in self.stop_strings):
            raise ValueError("stop_strings has an empty string, which every text contains")
