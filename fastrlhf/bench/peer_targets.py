"""What the comparisons have to show, two threads on a CPU: the measured table says of each whether it is met."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A bound on one figure of one comparison.

    Attributes:
        case: what is compared: mode and model, or precision and batch.
        peer: whom ours is compared with.
        figure: "speed", how many times faster ours is; "growth", how many times as large a model trains; "real", its
            state by the memory of the process; what ours has as a share of the peer's: "memory" (peak resident),
            "launches" (kernels) or "bytes" (that they move); or of ours alone "peak" (MB) and "overlap" (a phase by its
            compute alone).
        bound: at least this for speed, growth and real, at most this for the rest.
    """

    case: str
    peer: str
    figure: str
    bound: float

    def verdict(self, value: float) -> str:
        """The bound, and whether `value` meets it."""
        least = self.figure in ("speed", "growth", "real")
        met = value >= self.bound if least else value <= self.bound
        sign = "≥" if least else "≤"
        return f"{sign} {self.bound:.3g}: {'met' if met else 'missed'}"


TARGETS = (
    Target("full 17m", "trl", "speed", 1.7),
    Target("full smollm2", "trl", "speed", 1.7),
    Target("eos smollm2", "trl", "speed", 3.5),
    Target("lora smollm2", "trl+peft", "speed", 5),
    Target("lora smollm2", "trl+peft", "memory", 0.25),
    Target("time-to-reward smollm2", "trl", "speed", 10),
    Target("time-to-reward smollm2", "trl+peft", "speed", 5),
    Target("float32 batch 8", "transformers", "speed", 4),
    Target("float32 batch 16", "transformers", "speed", 4),
    Target("float32 batch 8", "ctranslate2", "speed", 1.8),
    Target("float32 batch 16", "ctranslate2", "speed", 1.8),
    Target("int8 batch 8", "ctranslate2", "speed", 1.8),
    Target("int8 batch 16", "ctranslate2", "speed", 1.3),
    Target("full 17m", "trl", "launches", 1 / 3),
    Target("full 17m", "trl", "bytes", 0.75),
    Target("lora 17m", "trl+peft", "launches", 0.25),
    Target("full smollm2", "trl", "launches", 1 / 3),
    Target("full smollm2", "trl", "bytes", 0.75),
    Target("lora smollm2", "trl+peft", "launches", 0.25),
    Target("growth full", "plain", "growth", 16),
    Target("growth lora", "plain", "growth", 40),
    Target("growth nf4", "plain", "growth", 100),
    Target("peak full", "plain", "peak", 400),
    Target("real disk", "plain", "real", 3),
    Target("overlap full a100-40", "plain", "overlap", 1.35),
)


def verdict(case: str, peer: str, figure: str, value: float) -> str:
    """What the target for this figure says of `value`; empty where there is none."""
    for target in TARGETS:
        if (target.case, target.peer, target.figure) == (case, peer, figure):
            return target.verdict(value)
    return ""
