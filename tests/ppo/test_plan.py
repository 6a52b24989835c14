"""The dry run without values says what a run with them holds, moves and asks of the device; and the plan made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from fastrlhf import cli
from fastrlhf.device import simulated
from fastrlhf.device.profiles import PROFILES
from fastrlhf.memory.meter import CapacityError
from fastrlhf.ppo import dry_run as dry
from fastrlhf.ppo import plan
from tests.support import tiny

CONFIG = tiny.llama_config(vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=3)
BASE = dry.Job(CONFIG, rows=4, prompt=6, response=5, micro_batch=2, bf16=False)
CASES = {
    "full": BASE,
    "full, offloaded": replace(BASE, device_memory=500_000),
    "full, larger, bfloat16": replace(
        BASE,
        config=tiny.llama_config(vocab_size=512, hidden_size=128, intermediate_size=320, num_hidden_layers=2),
        rows=8,
        micro_batch=8,
        dtype=torch.bfloat16,
    ),
    "full, activations kept, offloaded": replace(
        BASE, rows=2, micro_batch=2, checkpointing=False, device_memory=500_000
    ),
    "lora": replace(BASE, lora_rank=4),
    "nf4, offloaded": replace(BASE, lora_rank=4, base="nf4", device_memory=280_000),
    "lora, offloaded": replace(BASE, lora_rank=4, rows=8, micro_batch=4, device_memory=350_000),
}


def test_transformers_is_as_talkative_afterwards_as_before():
    before = logging.get_verbosity()
    assert before < logging.ERROR
    dry.dry_run(replace(BASE, rows=2, epochs=1, generates=False))
    assert logging.get_verbosity() == before


def measured(job: dry.Job, folder) -> tuple[dry.Books, object]:
    """The same step with models that have values."""
    with simulated.registered() as device:
        books = dry.run(dry.make_trainer(job, str(folder), "cpu"), device)
        return books, device.launches.copy()


@pytest.mark.parametrize("case", CASES)
def test_its_peak_is_within_a_tenth_of_what_the_meter_measures(case, tmp_path):
    job = CASES[case]
    planned, (found, _) = dry.dry_run(job), measured(job, tmp_path)
    assert planned.peak == pytest.approx(found.peak, rel=0.1)
    assert planned.chunks == found.chunks and planned.host == found.host
    assert list(planned.phases) == list(found.phases) == ["rollout", "reward", "evaluate", "update"]
    for name, phase in planned.phases.items():
        assert phase.peak == pytest.approx(found.phases[name].peak, rel=0.1), name
        # (models with values cross once, in the first phase, where nothing is offloaded)
        if name != "rollout":
            assert phase.to_device == pytest.approx(found.phases[name].to_device, rel=0.1, abs=20_000), name
            assert phase.to_host == pytest.approx(found.phases[name].to_host, rel=0.1, abs=20_000), name
    if job.device_memory is not None:
        assert 0 < planned.chunks <= job.device_memory


def test_a_card_gives_it_seconds():
    books = dry.dry_run(replace(BASE, device_memory=500_000), profile="a100-40")
    assert all(phase.seconds >= phase.busy["compute"] > 0 for phase in books.phases.values())
    assert books.phases["update"].busy["host"] > 0, "Adam, in the host's memory"
    assert sum(books.phases["update"].kinds.values()) == books.phases["update"].peak
    assert books.phases["update"].kinds["gradients"] > 0


def test_models_of_any_size_take_no_memory():
    job = replace(
        BASE, config=tiny.llama_config(vocab_size=32_000, hidden_size=8192, intermediate_size=22_016)
    )
    job = replace(job, generates=False, rows=1, micro_batch=1, device_memory=8 * 10**9)
    assert plan.count_parameters(job.config) > 10**9
    assert dry.dry_run(job).host > 40 * 10**9


def test_too_little_memory_is_said():
    with pytest.raises(CapacityError, match="needs"):
        dry.dry_run(replace(BASE, device_memory=10_000))
    with pytest.raises(torch.OutOfMemoryError, match="sim:0 is out of memory"):
        dry.dry_run(BASE, capacity=100_000)


def test_it_says_what_to_change():
    books = dry.dry_run(BASE)
    assert [way.name for way in plan.chosen(BASE, 2 * books.peak)] == ["as it is"]
    tried = plan.chosen(BASE, 0.6 * books.peak)
    assert tried[0].name == "as it is" and not tried[0].fits(0.6 * books.peak)
    assert tried[-1].name.startswith("device_memory=") and tried[-1].fits(0.6 * books.peak)
    tried = plan.chosen(BASE, 100_000)
    assert not tried[-1].fits(100_000) and tried[-1].name.startswith("--lora and")


@pytest.mark.slow
def test_the_largest_model_fits_and_is_larger_in_more_memory():
    job = replace(BASE, generates=False)
    (small, way), (large, _) = (plan.largest(job, capacity) for capacity in (2e6, 12e6))
    assert way.books.peak <= plan.USABLE * 2e6
    assert plan.count_parameters(large) > 2 * plan.count_parameters(small)
    assert small.hidden_size % small.num_attention_heads == 0
    assert plan.largest(job, 20_000) is None


def test_the_command_prints_what_each_phase_holds(tmp_path, capsys):
    CONFIG.save_pretrained(tmp_path)
    shape = ["--batch", "8", "--micro-batch", "2", "--prompt", "6", "--response", "4", "--dtype", "float32"]
    command = ["plan", "--model", str(tmp_path), *shape]
    assert cli.main([*command, "--gpu", "a100-40"]) == 0
    shown = capsys.readouterr().out
    assert "as it is: fits" in shown and "seconds" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80
    for phase in ("rollout", "reward", "evaluate", "update"):
        assert shown.count(phase) == 2
    assert cli.main([*command, "--gpu", "3MB", "--lora", "4"]) == 0
    shown = capsys.readouterr().out
    assert "LoRA of rank 4" in shown and "seconds" not in shown
    assert cli.main([*command, "--gpu", "50KB"]) == 1
    assert "does not run" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_names_the_largest_model(tmp_path, capsys):
    CONFIG.save_pretrained(tmp_path)
    command = ["plan", "--model", str(tmp_path), "--batch", "2", "--micro-batch", "2", "--prompt", "6"]
    assert cli.main([*command, "--response", "2", "--gpu", "3MB", "--lora", "4", "--largest"]) == 0
    assert "The largest of its shape: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "tpu"], "expected 4090, a100-40, a100-80, h100 or a size"),
        (["--gpu", "1GB", "--batch", "0"], "--batch takes a whole number"),
    ],
)
def test_what_cannot_be_meant_is_said(arguments, message, tmp_path):
    CONFIG.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=message):
        cli.main(["plan", "--model", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match="has no config"):
        cli.main(["plan", "--model", str(tmp_path / "nothing"), "--gpu", "1GB"])


def test_a_model_without_values_is_of_our_operations_and_keeps_its_ties():
    config = tiny.llama_config(tie_word_embeddings=True)
    with simulated.registered(values=False):
        model = dry.hollow_model(AutoModelForCausalLM, replace(BASE, config=config), "sim")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert {parameter.device.type for parameter in model.parameters()} == {"sim"}
        assert hasattr(type(model.model.norm), "accelerated_from")


def test_cards_have_sources():
    assert all(card.source.startswith("NVIDIA") for card in PROFILES.values())
