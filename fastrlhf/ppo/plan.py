"""What a PPO run will hold, move and take on a card, before it is there: a dry run of a step of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import AutoModelForCausalLM, PretrainedConfig

from fastrlhf.device.profiles import Profile
from fastrlhf.memory.meter import CapacityError
from fastrlhf.ppo.dry_run import Books, Job, dry_run, hollow_model

LORA_RANK = 16
# A card's allocator does not fill its last pages.
USABLE = 0.97
# A step of more micro-batches is a few of them, many times.
_MICRO_BATCHES = 2
# What lies beside the chunks at the peak changes with how many they are.
_TRIALS = 4


@dataclass(frozen=True)
class Way:
    """A way to run a job, and what it came to.

    Attributes:
        name: what to change, as an option of the command or of `PPOConfig`.
        job: as it would run.
        books: of the step that was run dry; None where it cannot begin (`error` says why).
        times: how many such steps make the job's: bytes that move and seconds are multiples.
    """

    name: str
    job: Job
    books: Books | None
    times: float = 1.0
    error: str = ""

    def fits(self, capacity: float) -> bool:
        """Whether it runs in so much memory."""
        return self.books is not None and self.books.peak <= USABLE * capacity

    def seconds(self, phase: str) -> float:
        """Of a phase of a whole step."""
        return self.times * self.books.phases[phase].seconds


def look(name: str, job: Job, profile: Profile | None = None) -> Way:
    """Run a job dry, in unlimited memory: what it needs is counted."""
    some = replace(job, rows=min(job.rows, _MICRO_BATCHES * job.micro_batch))
    try:
        return Way(name, job, dry_run(some, profile=profile), job.rows / some.rows)
    except CapacityError as error:
        return Way(name, job, None, error=str(error))


def offloaded(job: Job, capacity: float, profile: Profile | None = None) -> Way:
    """With as much memory for chunks as the activations leave, found by trying."""
    room = int(capacity / 2)
    for _ in range(_TRIALS):
        way = look(f'device_memory="{room / 1e9:.3g}GB"', replace(job, device_memory=room), profile)
        if way.books is None:
            return way
        free = USABLE * capacity - way.books.peak
        if 0 <= free < 0.05 * capacity or way.books.chunks < 0.9 * room:
            return way
        room += int(0.98 * free if free > 0 else 1.05 * free)
        if room <= 0:
            return replace(way, name="device_memory", books=None, error="activations alone do not fit")
    return way


def ways(job: Job, capacity: float, profile: Profile | None = None) -> Iterator[Way]:
    """The job as it is, then what may be changed, the least first."""
    yield look("as it is", job, profile)
    if job.device_memory is None:
        yield offloaded(job, capacity, profile)
    if job.micro_batch > 1:
        way = offloaded(replace(job, micro_batch=1), capacity, profile)
        yield replace(way, name=f"--micro-batch 1 and {way.name}")
    if job.lora_rank is None:
        way = offloaded(replace(job, lora_rank=LORA_RANK), capacity, profile)
        yield replace(way, name=f"--lora and {way.name}")


def chosen(job: Job, capacity: float, profile: Profile | None = None) -> list[Way]:
    """The ways up to the first that fits."""
    tried = []
    for way in ways(job, capacity, profile):
        tried.append(way)
        if way.fits(capacity):
            break
    return tried


def largest(job: Job, capacity: float) -> tuple[PretrainedConfig, Way] | None:
    """The largest model of the same proportions, to 5 % of its width, that runs as the job does, offloaded; None if not
    even one of a 16th of the width does."""
    found: list[tuple[PretrainedConfig, Way]] = []

    def fits(scale: float) -> bool:
        config = scaled(job.config, scale)
        way = offloaded(replace(job, config=config, device_memory=None), capacity)
        if way.fits(capacity):
            found.append((config, way))
        return way.fits(capacity)

    low = high = 1.0
    if fits(1.0):
        while fits(high := 2 * high):
            low = high
    else:
        while not fits(low := low / 2):
            high = low
            if low <= 1 / 16:
                return None
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if fits(middle) else (low, middle)
    return found[-1]


def count_parameters(config: PretrainedConfig) -> int:
    """Of a causal language model."""
    model = hollow_model(AutoModelForCausalLM, Job(config, 1, 1, 1, 1), "meta", ours=False)
    return sum(parameter.numel() for parameter in model.parameters())


def scaled(config: PretrainedConfig, scale: float) -> PretrainedConfig:
    """A model of `scale` times the width and depth: heads of the same width, vocabulary as it is."""
    groups = config.num_attention_heads // config.num_key_value_heads
    width = config.hidden_size // config.num_attention_heads
    key_heads = max(1, round(scale * config.num_key_value_heads))
    hidden = key_heads * groups * width
    made = {
        "num_hidden_layers": max(1, round(scale * config.num_hidden_layers)),
        "num_attention_heads": key_heads * groups,
        "num_key_value_heads": key_heads,
        "hidden_size": hidden,
        "intermediate_size": max(64, round(hidden / config.hidden_size * config.intermediate_size / 64) * 64),
        "layer_types": None,
    }
    return type(config)(**{**config.to_dict(), **made})
