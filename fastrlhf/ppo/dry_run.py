"""A PPO step of models of any size without their weights, on the simulated accelerator: what it holds, moves and takes.

The trainer's own code runs; only values are missing (see `fastrlhf.device.without_values`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from transformers.utils import logging

from fastrlhf.device import simulated
from fastrlhf.device.holdings import by_kind
from fastrlhf.device.labels import hold, labelled
from fastrlhf.device.ledger import Ledger
from fastrlhf.device.profiles import Profile
from fastrlhf.device.timeline import Interval
from fastrlhf.models.accelerate import accelerate_quietly
from fastrlhf.models.backbone import base_model
from fastrlhf.models.quantized import quantize_linears
from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.trainer import PPOTrainer

_PAD, _EOS, _WORD = 1, 2, 3


@dataclass(frozen=True)
class Job:
    """A PPO step.

    Attributes:
        config: of the model; policy, reference, reward model and critic have its shape.
        rows, prompt, response: sequences of a step, tokens of a prompt and of a response.
        micro_batch: sequences of a forward with gradients.
        rollout_batch: of a forward without, and of a generation; None: as many.
        lora_rank: of adapters on all linear maps, with one base for all roles; None trains all of four models.
        base: format of the frozen base's linear maps, "nf4" or "int8"; None: as the rest.
        dtype: of the models' weights. bf16: computes in bfloat16 by autocast.
        device_memory, host_memory: see `PPOConfig`; None for the first: nothing is offloaded.
        checkpointing: compute activations again in the backward.
        epochs: updates of the step.
        generates: sample the responses; else they are random tokens.
    """

    config: PretrainedConfig
    rows: int
    prompt: int
    response: int
    micro_batch: int
    lora_rank: int | None = None
    base: str | None = None
    dtype: torch.dtype = torch.float32
    bf16: bool = False
    device_memory: int | None = None
    host_memory: int | None = None
    checkpointing: bool = True
    epochs: int = 2
    rollout_batch: int | None = None
    generates: bool = True


@dataclass(frozen=True)
class Phase:
    """What the device did in a phase of a step; bytes and seconds (0 where there is no card's profile).

    Attributes:
        peak: the most held. kinds: what held it, by `holdings.KINDS`.
        to_device, to_host: what crossed.
        busy: seconds by engine. intervals: what ran when.
    """

    peak: int
    kinds: Counter[str]
    to_device: int
    to_host: int
    seconds: float
    busy: Counter[str]
    stalled: float
    intervals: list[Interval] = field(repr=False)


@dataclass(frozen=True)
class Books:
    """What a step came to, in bytes.

    Attributes:
        phases: by name, in their order.
        chunks: the most that the manager had on the device; 0 where nothing is offloaded. host: in the host's memory.
    """

    phases: dict[str, Phase]
    chunks: int = 0
    host: int = 0

    @property
    def peak(self) -> int:
        """The most of the device's memory."""
        return max(phase.peak for phase in self.phases.values())


class SimulatedConfig(PPOConfig):
    """A config whose device is sim:0."""

    @property
    def device(self) -> torch.device:
        return torch.device("sim", 0) if super().device.type == "cpu" else super().device


def dry_run(job: Job, *, capacity: float = inf, profile: Profile | str | None = None) -> Books:
    """Run one step.

    Args:
        capacity: the device's memory, in bytes. profile: the card, for seconds.

    Raises:
        CapacityError: the models cannot be offloaded into `device_memory`.
        torch.OutOfMemoryError: the step needs more than `capacity`.
    """
    place = "sim" if job.device_memory is None else "meta"
    with (
        _errors_alone(),
        tempfile.TemporaryDirectory(prefix="fastrlhf-dry-run-") as folder,
        simulated.registered(capacity, profile=profile, values=False) as device,
    ):
        return run(make_trainer(job, folder, place), device)


@contextmanager
def _errors_alone() -> Iterator[None]:
    """What transformers says of a run is not of interest where there is none; afterwards it speaks as before."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def run(trainer: PPOTrainer, device: Ledger) -> Books:
    """The books of a trainer's first step."""
    watch = _Watch(device, trainer.model)
    trainer.phase_listeners.append(watch.enter)
    name_chunks(trainer)
    with watch.labels:
        trainer.train()
        watch.leave()
    manager = getattr(trainer.optimizer, "manager", None)
    if manager is None:
        return Books(watch.phases)
    return Books(watch.phases, manager.device_meter.peak, manager.host_meter.peak)


def name_chunks(trainer: PPOTrainer) -> None:
    """Say of the device's memory that the manager has what it is for."""
    manager = getattr(trainer.optimizer, "manager", None)
    for chunk in manager.chunks if manager else ():
        for role in ("parameters", "gradients", "optimizer"):
            if piece := getattr(chunk, role):
                hold(f"{role} / chunks", [piece.flat])


class _Watch:
    """Reads the books at the end of each phase, and has kinds of memory told apart in all but rollouts: where somebody
    listens to a model's modules our generator leaves it to them."""

    def __init__(self, device: Ledger, model: nn.Module):
        self.device, self.model = device, model
        self.labels = ExitStack()
        self.phases: dict[str, Phase] = {}
        self._name: str | None = None

    def enter(self, name: str) -> None:
        self.leave()
        self._name = name
        self.labels.close()
        if name != "rollout":
            self.labels.enter_context(labelled(self.model))

    def leave(self) -> None:
        device, timeline = self.device, self.device.timeline
        if self._name is not None:
            self.phases[self._name] = Phase(
                device.peak,
                by_kind(device.at_peak),
                device.to_device,
                device.to_host,
                timeline.seconds if timeline else 0.0,
                timeline.busy if timeline else Counter(),
                timeline.stalled if timeline else 0.0,
                timeline.intervals if timeline else [],
            )
        self._name = None
        device.reset()


def make_trainer(job: Job, folder: str, place: str) -> PPOTrainer:
    """The trainer of a job, whose models are made on the device `place`."""
    torch.manual_seed(0)
    shared = job.lora_rank is not None
    policy = hollow_model(AutoModelForCausalLM, job, place)
    reference = critic = None
    if not shared:
        reference = hollow_model(AutoModelForCausalLM, job, place)
        critic = hollow_model(AutoModelForSequenceClassification, job, place)
    peft_config = None
    if shared:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=job.lora_rank,
            target_modules="all-linear",
            exclude_modules=["lm_head"],
            task_type="CAUSAL_LM",
        )
    tokens = torch.randint(_WORD, job.config.vocab_size, (job.rows, job.prompt))
    trainer = (PPOTrainer if job.generates else _GivenResponses)(
        _arguments(job, folder),
        tokenizer(),
        policy,
        reference,
        _length if shared else hollow_model(AutoModelForSequenceClassification, job, place),
        Dataset.from_dict({"input_ids": tokens.tolist()}),
        critic,
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _GivenResponses(PPOTrainer):
    """Its rollouts come from elsewhere."""

    def generate_responses(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        shape = len(input_ids), self.args.response_length
        return torch.randint(_WORD, base_model(self.policy_model).config.vocab_size, shape).to(
            input_ids.device
        )


def _arguments(job: Job, folder: str) -> PPOConfig:
    return SimulatedConfig(
        output_dir=folder,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.rows // job.micro_batch,
        local_rollout_forward_batch_size=job.rollout_batch or job.micro_batch,
        num_ppo_epochs=job.epochs,
        response_length=job.response,
        total_episodes=job.rows,
        num_sample_generations=0,
        gradient_checkpointing=job.checkpointing,
        bf16=job.bf16,
        device_memory=None if job.device_memory is None else str(job.device_memory),
        host_memory=None if job.host_memory is None else str(job.host_memory),
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def hollow_model(kind: Any, job: Job, place: str, *, ours: bool = True) -> nn.Module:
    """A model of transformers' class `kind`, whose parameters are on "meta" or "sim" and nowhere before; made of our
    operations if it is to be `ours`."""
    labels = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}
    config = type(job.config)(**{**job.config.to_dict(), **labels, "pad_token_id": _PAD})
    with torch.device("meta"):
        model = kind.from_config(config, dtype=job.dtype)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.zeros_like(buffer, device="cpu")
    if ours:  # norms are tried out before they are replaced
        _put(model, "cpu", lambda parameter: parameter.dim() == 1)
        accelerate_quietly(model)
        if job.base is not None:
            quantize_linears(model, job.base)
    _put(model, place, lambda parameter: True)
    return model.to(place) if place == "sim" else model


def _put(model: nn.Module, place: str, which: Callable[[nn.Parameter], bool]) -> None:
    """Have parameters, tied ones too, on a device; their values are lost."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and which(old):
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(torch.ones_like(old, device=place), old.requires_grad)
                module._parameters[name] = made[id(old)]


def _length(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that costs the device nothing."""
    return [float(len(completion)) for completion in completions]


def tokenizer() -> PreTrainedTokenizerFast:
    """Some tokenizer: what the tokens stand for does not matter."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"a": 0, "<pad>": _PAD, "<eos>": _EOS, "b": _WORD}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="b")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="b",
        padding_side="left",
    )
