"""How large a model trains on a device, in how little memory, and how well what moves hides behind what computes.

All but one of it is counted on the simulated accelerator, without values (`fastrlhf.ppo.dry_run`): the trainer's own
steps, of models of any size. `real` trains on this machine, and the operating system counts. Nothing is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig

from fastrlhf.bench import side_capacity
from fastrlhf.bench.capacity_plain import plain_peak
from fastrlhf.bench.results import Provenance, provenance
from fastrlhf.bench.sides import run_side
from fastrlhf.device.profiles import PROFILES, Profile
from fastrlhf.device.timeline import COMPUTE, Interval
from fastrlhf.memory.meter import CapacityError
from fastrlhf.ppo.dry_run import Books, Job, dry_run
from fastrlhf.ppo.plan import count_parameters

QUESTIONS = ("growth", "peak", "overlap", "real")
CHUNKS_OF_REAL = "40MB"
LORA_RANK = 16
# Ways to train a model that is larger than the device, as options of a `Job`.
CASES = {
    "full": {},
    "lora": {"lora_rank": LORA_RANK},
    "nf4": {"lora_rank": LORA_RANK, "base": "nf4"},
}


class Family(NamedTuple):
    """Llamas of one rule: a layer for every two heads, an MLP of 8 / 3 of the width, head and embedding apart.

    Attributes:
        step: width of a head. vocabulary: of all. rows, prompt, response: of a step.
        capacity: of the device, in bytes. share: of it that chunks may take; the rest is for activations.
    """

    step: int
    vocabulary: int
    rows: int
    prompt: int
    response: int
    capacity: float
    share: float = 0.5

    def config(self, width: int) -> LlamaConfig:
        """The member of a width."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=width,
            intermediate_size=-(-8 * width // (3 * self.step)) * self.step,
            num_hidden_layers=max(1, round(width / (2 * self.step))),
            num_attention_heads=width // self.step,
            num_key_value_heads=width // self.step,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )

    def job(self, width: int) -> Job:
        """A step of all models on the device, whose responses are given."""
        shape = self.rows, self.prompt, self.response
        rows = self.rows // 4  # keys and values of all rows are more than a layer's weights
        return Job(
            self.config(width), *shape, micro_batch=self.rows, rollout_batch=rows or 1, generates=False
        )

    def offloaded(self, width: int) -> Job:
        """The same with chunks that move."""
        return replace(self.job(width), device_memory=int(self.share * self.capacity))


class Sizes(NamedTuple):
    """What is asked about.

    Attributes:
        family, card: of `growth`; the largest of it take a whole step on the clock of the card.
        small, small_memory: the model of `peak`, and what chunks may take there.
        wide: the member of the family (its width) of `overlap`, and the rows, prompt and response of its step.
    """

    family: Family
    card: str
    small: LlamaConfig
    small_memory: int
    wide: int
    step: tuple[int, int, int]


# 2,048 tokens a step, on a card of 24 GB; SmolLM2-135M's shape; 8,192 tokens a step.
FULL = Sizes(
    Family(64, 32_000, rows=8, prompt=240, response=16, capacity=PROFILES["4090"].capacity),
    "4090",
    LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
    230_000_000,
    2048,
    (32, 240, 16),
)
_TINY = Family(16, 96, rows=2, prompt=6, response=4, capacity=4e6)
QUICK = Sizes(_TINY, "4090", _TINY.config(64), 600_000, 128, (8, 6, 4))


@dataclass(frozen=True)
class CapacityRow:
    """One contender of one case.

    Attributes:
        question, case, contender: what is asked, of which way to train, and "plain" or "ours".
        layers, width, parameters_m: of the policy, 10^6 parameters.
        device_mb: the device's memory. peak_mb, host_mb: held at most there and in the host's, 10^6 bytes.
        step_s: of the whole step on the card's clock; 0 where there is none.
        value: growth: parameters by those of plain; peak: MB; overlap: the update phase by its compute alone; real:
            parameters, gradients and moments by the most that the process held.
    """

    question: str
    case: str
    contender: str
    layers: int
    width: int
    parameters_m: float
    device_mb: float
    peak_mb: float
    host_mb: float
    step_s: float
    value: float
    cpu: str
    cores: int
    threads: int
    fastrlhf: str
    torch: str
    transformers: str
    peft: str
    peer: str


def growth(family: Family, card: str) -> list[CapacityRow]:
    """The largest of a family that trains on the device: plain, and ours in full and with adapters on one base."""

    where = provenance(torch.get_num_threads())
    base = _largest(lambda width: plain_peak(family.job(width), family.capacity), family.step, family.step)
    config = family.config(base)
    held = plain_peak(family.job(base), family.capacity)
    rows = [_row("growth", "full", "plain", config, family.capacity, held, 0, 0.0, 1.0, where)]
    for case, options in CASES.items():
        _say(f"growth {case}")

        def job(width: int, options: dict = options) -> Job:
            return replace(family.offloaded(width), **options)

        width = _largest(
            lambda width, job=job: dry_run(job(width), capacity=family.capacity).peak, base, family.step
        )
        whole = replace(job(width), generates=True)
        books = dry_run(whole, capacity=family.capacity, profile=_card(card, family.capacity))
        ratio = count_parameters(whole.config) / count_parameters(config)
        rows.append(_ours("growth", case, whole.config, family.capacity, books, ratio, where))
    return rows


def peak(config: LlamaConfig, device_memory: int) -> list[CapacityRow]:
    """What a step of four models, 8 sequences of 16 + 48, holds at most."""
    job = Job(config, rows=8, prompt=16, response=48, micro_batch=8)
    where = provenance(torch.get_num_threads())
    _say("peak: plain")
    held = plain_peak(job, float("inf"))
    _say("peak: ours")
    books = dry_run(replace(job, device_memory=device_memory))
    return [
        _row("peak", "full", "plain", config, 0.0, held, 0, 0.0, held / 1e6, where),
        _ours("peak", "full", config, 0.0, books, books.peak / 1e6, where),
    ]


def overlap(sizes: Sizes, card: str) -> tuple[list[CapacityRow], list[Interval]]:
    """The update phase where the models' state is four times the device, by its compute alone; and what ran when."""
    _say("overlap")
    config = sizes.family.config(sizes.wide)
    # a quarter of the state, which is 40 bytes: four models in float32, two of them with gradients and two moments
    capacity = 10.0 * count_parameters(config)
    rows, prompt, response = sizes.step
    memory = int(sizes.family.share * capacity)
    job = Job(config, rows, prompt, response, micro_batch=rows, device_memory=memory)
    books = dry_run(job, capacity=capacity, profile=_card(card, capacity))
    update = books.phases["update"]
    where = provenance(torch.get_num_threads())
    row = _ours(
        "overlap", f"full {card}", config, capacity, books, update.seconds / update.busy[COMPUTE], where
    )
    return [row], update.intervals


def real(disk: Path) -> list[CapacityRow]:
    """A model trained on this machine in plenty of memory, and in little with a file in `disk`.

    Raises:
        RuntimeError: the two runs differ in a bit.
    """
    rows, results = [], []
    where = provenance(1)
    for contender, options in (
        ("plain", {}),
        ("ours", {"device_memory": CHUNKS_OF_REAL, "disk": str(disk)}),
    ):
        _say(f"real: {contender}")
        found = run_side("fastrlhf.bench.side_capacity", {"options": options}, threads=1)
        results.append((found["losses"], found["last"]))
        held, state = found["peak_rss_mb"], found["state_mb"]
        sizes = (round(state / 16, 1), 0.0, round(held, 1), 0.0)
        figures = (side_capacity.BLOCKS, side_capacity.WIDTH, *sizes, 0.0, round(state / held, 3))
        rows.append(CapacityRow("real", "disk", contender, *figures, **asdict(where)))
    if results[0] != results[1]:
        raise RuntimeError(f"in little memory training gave {results[1]}, and in plenty {results[0]}")
    return rows


def _largest(peak: Callable[[int], int], low: int, step: int) -> int:
    """The largest width whose `peak` raises no error of memory, to 2 % (or a step); `low` has to fit."""

    def fits(width: int) -> bool:
        try:
            _say(f"  width {width}: {peak(width) / 1e9:.3g} GB")
        except (torch.OutOfMemoryError, CapacityError):
            _say(f"  width {width}: does not fit")
            return False
        return True

    high = 2 * low
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(step, 0.02 * low):
        middle = (low + high) // (2 * step) * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _card(name: str, capacity: float) -> Profile:
    return replace(PROFILES[name], capacity=capacity)


def _ours(
    question: str,
    case: str,
    config: LlamaConfig,
    capacity: float,
    books: Books,
    value: float,
    where: Provenance,
) -> CapacityRow:
    seconds = sum(phase.seconds for phase in books.phases.values())
    return _row(question, case, "ours", config, capacity, books.peak, books.host, seconds, value, where)


def _row(
    question: str,
    case: str,
    contender: str,
    config: LlamaConfig,
    capacity: float,
    peak: int,
    host: int,
    seconds: float,
    value: float,
    where: Provenance,
) -> CapacityRow:
    return CapacityRow(
        question,
        case,
        contender,
        config.num_hidden_layers,
        config.hidden_size,
        round(count_parameters(config) / 1e6, 1),
        *(round(size / 1e6, 1) for size in (capacity, peak, host)),
        round(seconds, 3),
        round(value, 3),
        **asdict(where),
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
