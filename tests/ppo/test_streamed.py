"""Checkpoints of what is not in memory: whole, readable by transformers and by other memory, and never in memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import fastrlhf
from fastrlhf.memory import disk
from fastrlhf.memory.tensor_files import Value, write_shards
from fastrlhf.models.quantized import quantize_linears
from fastrlhf.ppo import state
from fastrlhf.trainers.checkpoint import CheckpointError, check_checkpoint, find_checkpoint
from tests.support import tiny

LORA = {"target_modules": "all-linear", "exclude_modules": ["lm_head"], "r": 2}
LITTLE = "400kB"


def llama(tied=True):
    return tiny.tiny_llama(hidden_size=64, intermediate_size=128, tie_word_embeddings=tied)


def in_bits():
    model = llama()
    quantize_linears(model, "nf4")
    return model


POLICIES = {
    "full": (llama, False),
    "untied": (lambda: llama(tied=False), False),
    "adapter": (llama, True),
    "adapter on NF4": (in_bits, True),
}


def trainer_of(folder, policy, **options):
    make, adapts = POLICIES[policy]
    torch.manual_seed(0)
    peft_config = LoraConfig(**LORA) if adapts else None
    options = {"total_episodes": 16, "save_strategy": "steps", "save_steps": 1, **options}
    return tiny.tiny_trainer(folder, model=make(), peft_config=peft_config, ref_model=None, **options)


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(actual[name], value)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(state, "SHARD_SIZE", "50kB")


@pytest.mark.parametrize("policy", POLICIES)
def test_transformers_reads_the_policy_that_was_trained(policy, tmp_path):
    trainer = trainer_of(tmp_path, policy, device_memory=LITTLE, offload_dir=str(tmp_path))
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    read, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        expected = trainer.policy_model.eval()(input_ids=tokens).logits
        torch.testing.assert_close(read.eval()(tokens).logits, expected, rtol=1e-3, atol=1e-4)
    if policy in ("full", "untied"):
        assert_same(values(read), values(trainer.policy_model))
    else:
        again = PeftModel.from_pretrained(POLICIES[policy][0](), folder / state.ADAPTER)
        with torch.no_grad():
            torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-4, atol=1e-5)


MEMORY = {
    "plain": {},
    "disk": {"device_memory": LITTLE, "offload_dir": True},
    "host": {"device_memory": LITTLE, "host_memory": "4MB"},
}


@pytest.mark.parametrize(("writes", "reads"), [("disk", "host"), ("host", "plain"), ("plain", "disk")])
@pytest.mark.parametrize("policy", ["full", "adapter on NF4"])
def test_a_run_goes_on_in_other_memory(policy, writes, reads, tmp_path):
    def options(memory):
        return {name: str(tmp_path) if value is True else value for name, value in MEMORY[memory].items()}

    whole = trainer_of(tmp_path / "run", policy, **options(writes))
    whole.train()
    resumed = trainer_of(tmp_path / "run", policy, save_strategy="no", **options(reads))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    actual, expected = values(resumed.model), values(whole.model)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_what_was_trained_is_saved_at_the_end(tmp_path):
    trainer = trainer_of(tmp_path, "full", device_memory=LITTLE, offload_dir=str(tmp_path))
    trainer.train()
    trainer.save_model(tmp_path / "end")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "end")
    assert_same(values(read), values(trainer.policy_model))


def test_moments_of_another_model_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, "full", device_memory=LITTLE, offload_dir=str(tmp_path))
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    zeros = {"0.exp_avg": Value(torch.float32, (3,), lambda: torch.zeros(3))}
    state.write_file(folder / state.MOMENTS, zeros)
    manifest = json.loads((folder / "manifest.json").read_text())
    from fastrlhf.trainers.checkpoint import _digest

    manifest["files"][state.MOMENTS] = _digest(folder / state.MOMENTS)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = values(trainer.model)
    with pytest.raises(CheckpointError, match=r"the optimizer's exp_avg is \[3\]"):
        state.read_state(trainer, folder)
    assert_same(values(trainer.model), before)


PROGRAM = """
    import json, os, sys, torch
    from pathlib import Path
    import fastrlhf
    from fastrlhf.memory.buffers import return_large_allocations
    from fastrlhf.memory.resident import peak_resident_mb, resident_mb
    from fastrlhf.memory.streamed import load_values
    from fastrlhf.memory.tensor_files import stored_tensors
    from fastrlhf.ppo import state
    from fastrlhf.trainers.checkpoint import save_checkpoint

    torch.set_num_threads(1)
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    model = fastrlhf.load(folder, lazy=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer = fastrlhf.offload(model, optimizer, device_memory="50MB", disk=folder)
    tokens = torch.arange(8)[None]

    def step():
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def peak_of(work):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = resident_mb()
        work()
        return peak_resident_mb() - before

    def write(target):
        state.save_policy(model, target)
        light = state.save_optimizer(optimizer, target / state.MOMENTS)
        torch.save(light, target / "training.pt")

    def read():
        place = folder / "checkpoint-1"
        light = torch.load(place / "training.pt")
        state.add_moments(optimizer, light, place / state.MOMENTS)
        load_values(model, stored_tensors(place.glob("model*.safetensors")))
        optimizer.load_state_dict(light)

    step()
    saving = peak_of(lambda: save_checkpoint(folder, 1, write))
    if kill_at:
        writes, count = state.write_file, [0]
        value = optimizer.manager.values
        def counted(parameter):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), 9)
            return value(parameter)
        optimizer.manager.values = counted
        save_checkpoint(folder, 2, write)
    step()
    with optimizer.manager.use(model.lm_head):
        first = model.lm_head.weight.double().sum().item()
    loading = peak_of(read)
    step()
    with optimizer.manager.use(model.lm_head):
        again = model.lm_head.weight.double().sum().item()
    written = sum(file.stat().st_size for file in (folder / "checkpoint-1").iterdir()) / 1e6
    print(json.dumps({"saving": saving, "loading": loading, "written": written, "same": first == again}))
"""


def run(folder, kill_at=0):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=170)


@pytest.fixture
def wide(tmp_path):
    """A checkpoint of 19 million parameters."""
    config = tiny.llama_config(hidden_size=512, intermediate_size=1024, num_hidden_layers=8)
    config.dtype = torch.float32
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    values = {
        name: Value(p.dtype, tuple(p.shape), lambda p=p: torch.randn(p.shape) * 0.02)
        for name, p in model.named_parameters()
    }
    write_shards(tmp_path, values, 20_000_000)
    return tmp_path


def test_saving_and_loading_from_the_disk_hold_a_tensor_at_a_time_as_the_operating_system_counts(wide):
    done = run(wide)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"], "a step from what was loaded is the step that was made"
    assert found["written"] > 220
    # tensors of 2 MB, and of a chunk (6 MB) its optimizer state when that is loaded; chunks may come within 50 MB
    assert found["saving"] < 15
    assert found["loading"] < 40


def test_killed_in_the_middle_of_a_streamed_save_the_checkpoint_before_is_whole(wide):
    done = run(wide, kill_at=20)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert find_checkpoint(wide, True) == wide / "checkpoint-1"
    left = {path.name for path in wide.iterdir() if not path.name.startswith("model")}
    assert left == {"checkpoint-1", "config.json"}, "nor anything of the disk tier"
    state_dict = fastrlhf.load(wide / "checkpoint-1").state_dict()
    assert all(value.isfinite().all() for value in state_dict.values())


class TestFaults:
    """A disk that fails ends the run; the last checkpoint is whole, and the run goes on from it."""

    def fails_after(self, monkeypatch, call, count):
        whole, calls = getattr(disk.os, call), []

        def fails(*args):
            calls.append(1)
            if len(calls) > count:
                raise OSError(28, "No space left on device")
            return whole(*args)

        monkeypatch.setattr(disk.os, call, fails)

    def options(self, tmp_path):
        return {"device_memory": LITTLE, "offload_dir": str(tmp_path / "tier")}

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        (tmp_path / "tier").mkdir()

    @pytest.mark.parametrize("call", ["preadv", "pwritev"])
    def test_in_a_step(self, call, tmp_path, monkeypatch):
        whole = trainer_of(tmp_path / "whole", "full", **self.options(tmp_path))
        whole.train()
        trainer = trainer_of(tmp_path / "run", "full", **self.options(tmp_path))
        end_step = trainer.end_step

        def then_fail(*args):
            ends = end_step(*args)
            self.fails_after(monkeypatch, call, 5)
            return ends

        trainer.end_step = then_fail
        with pytest.raises(disk.TierError, match="No space left"):
            trainer.train()
        monkeypatch.undo()
        monkeypatch.setattr(state, "SHARD_SIZE", "50kB")
        assert [path.name for path in sorted((tmp_path / "run").glob("*checkpoint*"))] == ["checkpoint-1"]
        resumed = trainer_of(tmp_path / "run", "full", save_strategy="no", **self.options(tmp_path))
        resumed.train(resume_from_checkpoint=True)
        assert_same(values(resumed.model), values(whole.model))

    def test_while_a_checkpoint_is_written(self, tmp_path, monkeypatch):
        trainer = trainer_of(tmp_path / "run", "full", save_strategy="no", **self.options(tmp_path))
        trainer.train()
        first = trainer._save(required=True)
        trainer.state.global_step += 1
        trainer.optimizer.manager.residency.settle()
        self.fails_after(monkeypatch, "preadv", 8)
        with pytest.raises(CheckpointError, match=r"(?s)could not write .*No space left.*untouched"):
            trainer._save(required=True)
        monkeypatch.undo()
        check_checkpoint(first)
        assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == [first.name]
