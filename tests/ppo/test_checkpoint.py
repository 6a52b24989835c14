"""Checkpoints are whole or not there, and hold what they promise."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastrlhf import accelerate
from fastrlhf.ppo import state
from fastrlhf.trainers import checkpoint
from fastrlhf.trainers.checkpoint import CheckpointError, check_checkpoint, checkpoints, save_checkpoint
from tests.support import process
from tests.support.runs import metrics, same, snapshot
from tests.support.tiny import (
    WORDS,
    tiny_gpt2,
    tiny_llama,
    tiny_llama_classifier,
    tiny_prompts,
    tiny_trainer,
)

SAVE_EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}


def write_small(folder):
    """A checkpoint's worth of small files."""
    (folder / "inner").mkdir()
    (folder / "a.bin").write_bytes(b"a" * 50_000)
    (folder / "inner" / "b.bin").write_bytes(b"b" * 50_000)


def steps(run_dir):
    return [step for step, _ in checkpoints(run_dir)]


def hidden(run_dir):
    return sorted(path.name for path in run_dir.iterdir() if path.name.startswith("."))


# Kills


def save_and_die(run_dir, step, keep_last, where):
    """Save a checkpoint in a process that is killed at a chosen point."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_before(name):
        setattr(checkpoint, name, die)

    if where == "first-file":
        save_checkpoint(run_dir, step, die, keep_last)
    elif where == "half-a-file":

        def write(folder):
            write_small(folder)
            with (folder / "a.bin").open("r+b") as file:
                file.truncate(100)
            die()

        save_checkpoint(run_dir, step, write, keep_last)
    elif where in ("_write_manifest", "_sync", "_replace"):
        die_before(where)
    elif where == "between-renames":
        rename = Path.rename

        def second_dies(self, target):
            if self.name.endswith(f"{os.getpid()}.tmp"):
                die()
            return rename(self, target)

        Path.rename = second_dies
    elif where == "while-deleting":
        rmtree = shutil.rmtree

        def half(path, **_):
            if Path(path).exists() and not Path(path).name.endswith(f"{step}.{os.getpid()}.tmp"):
                next(iter(sorted(Path(path).rglob("*.bin")))).unlink()
                die()
            return rmtree(path, **_)

        shutil.rmtree = half
    save_checkpoint(run_dir, step, write_small, keep_last)


POINTS = ["first-file", "half-a-file", "_write_manifest", "_sync", "_replace"]


@pytest.mark.parametrize("where", [*POINTS, "between-renames"])
def test_kill_while_saving_a_later_step(tmp_path, where):
    save_checkpoint(tmp_path, 1, write_small)
    assert process.run(save_and_die, tmp_path, 2, None, where) == -signal.SIGKILL
    found = checkpoint.find_checkpoint(tmp_path, True)
    check_checkpoint(found)
    assert found.name in ("checkpoint-1", "checkpoint-2")
    check_checkpoint(tmp_path / "checkpoint-1")
    save_checkpoint(tmp_path, 3, write_small)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("where", [*POINTS, "between-renames", "while-deleting"])
def test_kill_while_saving_the_same_step_again(tmp_path, where):
    """Even the only checkpoint, about to be replaced, is there in one version or the other."""
    save_checkpoint(tmp_path, 2, write_small)
    assert process.run(save_and_die, tmp_path, 2, None, where) == -signal.SIGKILL
    found = checkpoint.find_checkpoint(tmp_path, True)
    assert found.name == "checkpoint-2"
    check_checkpoint(found)
    save_checkpoint(tmp_path, 3, write_small)
    assert steps(tmp_path) == [2, 3]
    assert hidden(tmp_path) == []


def test_kill_between_renames_and_a_resumption_by_name(tmp_path):
    save_checkpoint(tmp_path, 2, write_small)
    process.run(save_and_die, tmp_path, 2, None, "between-renames")
    assert checkpoint.find_checkpoint(tmp_path, tmp_path / "checkpoint-2") == tmp_path / "checkpoint-2"


def test_kill_while_deleting_the_old_one(tmp_path):
    save_checkpoint(tmp_path, 1, write_small)
    assert process.run(save_and_die, tmp_path, 2, 1, "while-deleting") == -signal.SIGKILL
    assert steps(tmp_path) == [2]
    check_checkpoint(tmp_path / "checkpoint-2")
    assert len(hidden(tmp_path)) == 1
    save_checkpoint(tmp_path, 3, write_small, keep_last=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]


def save_for_ever(run_dir):
    step = 1
    while True:
        step += 1
        save_checkpoint(run_dir, step // 2, write_small, keep_last=2)


def kill_at_random(run_dir, seed):
    delay = random.Random(seed).uniform(0, 0.15)
    save_checkpoint(run_dir, 0, write_small)
    child = process.start(save_for_ever, run_dir)
    time.sleep(delay)
    child.kill()
    assert process.finish(child) == -signal.SIGKILL
    check_checkpoint(checkpoint.find_checkpoint(run_dir, True))
    newest = steps(run_dir)[-1]
    save_checkpoint(run_dir, newest + 1, write_small, keep_last=2)
    assert hidden(run_dir) == []
    assert len(steps(run_dir)) == 2 or newest == 0
    for _, path in checkpoints(run_dir):
        check_checkpoint(path)


@pytest.mark.parametrize("seed", range(10))
def test_kill_at_random(tmp_path, seed):
    kill_at_random(tmp_path, seed)


@pytest.mark.slow
def test_kill_at_random_many_times(tmp_path):
    for seed in range(100, 300):
        kill_at_random(tmp_path / str(seed), seed)


def train_for_ever(run_dir):
    tiny_trainer(
        run_dir, **SAVE_EVERY_STEP, keep_last=2, total_episodes=8_000, lr_scheduler_type="constant"
    ).train()


@pytest.mark.slow
def test_kill_a_run_at_random(tmp_path):
    """What a killed run leaves is resumed to the same weights, wherever the kill came."""
    whole = tiny_trainer(tmp_path / "whole", total_episodes=80)
    whole.train()
    for seed in range(15):
        run_dir = tmp_path / str(seed)
        child = process.start(train_for_ever, run_dir)
        while not steps(run_dir):
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        child.kill()
        process.finish(child)
        last = checkpoint.find_checkpoint(run_dir, True)
        if int(last.name.partition("-")[2]) > 10:
            continue
        resumed = tiny_trainer(run_dir, total_episodes=80)
        resumed.train(resume_from_checkpoint=True)
        assert same(snapshot(resumed)["policy"], snapshot(whole)["policy"])


def test_what_another_live_process_is_saving_stays(tmp_path):
    busy = tmp_path / f".checkpoint-5.{os.getppid()}.tmp"
    busy.mkdir()
    save_checkpoint(tmp_path, 1, write_small)
    assert busy.is_dir()


def test_leftovers_of_a_process_that_had_this_one_s_number(tmp_path):
    """In a container each run may have the same process number."""
    (tmp_path / f".checkpoint-5.{os.getpid()}.tmp").mkdir(parents=True)
    save_checkpoint(tmp_path, 6, write_small)
    assert hidden(tmp_path) == []


# How many stay


@pytest.mark.parametrize("name", ["keep_last", "save_total_limit"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_keep_last(tmp_path, name, limit):
    tiny_trainer(tmp_path, **SAVE_EVERY_STEP, **{name: limit}).train()
    assert steps(tmp_path) == [1, 2, 3, 4][-limit:]


@pytest.mark.parametrize("limit", [None, 0, -1])
def test_no_limit(tmp_path, limit):
    tiny_trainer(tmp_path, **SAVE_EVERY_STEP, save_total_limit=limit).train()
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_the_one_just_written_stays(tmp_path):
    """A run that went back to an early step must not delete what it writes, though later steps are there."""
    for step in (5, 6, 7):
        save_checkpoint(tmp_path, step, write_small)
    save_checkpoint(tmp_path, 2, write_small, keep_last=2)
    assert steps(tmp_path) == [2, 7]
    save_checkpoint(tmp_path, 3, write_small, keep_last=1)
    assert steps(tmp_path) == [3]


# Damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory with checkpoints 3 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_trainer(folder, **SAVE_EVERY_STEP, keep_last=2).train()
    return folder


@pytest.fixture
def run_dir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


FILES = ["model.safetensors", "critic.safetensors", "training.pt", "progress.json", "trainer_state.json"]
DAMAGES = {
    "altered": flip,
    "cut": truncate,
    "emptied": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


def refuses(trainer, folder, message):
    before = snapshot(trainer)
    with pytest.raises(CheckpointError, match=message) as caught:
        trainer.train(resume_from_checkpoint=folder)
    assert str(folder) in str(caught.value)
    assert same(snapshot(trainer), before)
    assert trainer.state.global_step == 0
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_file(run_dir, name, damage):
    newest = run_dir / "checkpoint-4"
    DAMAGES[damage](newest / name)
    trainer = tiny_trainer(run_dir)
    message = refuses(trainer, newest, "lacks" if damage == "gone" else "is cut short or altered")
    assert name in message
    assert "use an earlier checkpoint" in message
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.log_history[-1]["step"] == 4
    assert checkpoint.find_checkpoint(run_dir, True).name == "checkpoint-3"


@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_damaged_manifest(run_dir, damage):
    DAMAGES[damage](run_dir / "checkpoint-4" / "manifest.json")
    refuses(tiny_trainer(run_dir), run_dir / "checkpoint-4", "manifest.json is damaged .* use an earlier")


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", '{"format": "fastrlhf-ppo", "version": "x", "files": {}}']
)
def test_foreign_manifest(run_dir, content):
    (run_dir / "checkpoint-4" / "manifest.json").write_text(content)
    refuses(tiny_trainer(run_dir), run_dir / "checkpoint-4", "is damaged")


def test_manifest_of_a_later_version(run_dir):
    path = run_dir / "checkpoint-4" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    refuses(
        tiny_trainer(run_dir), run_dir / "checkpoint-4", "version 99, expected fastrlhf-ppo 1: read it with"
    )


def test_missing_manifest(run_dir):
    (run_dir / "checkpoint-4" / "manifest.json").unlink()
    refuses(tiny_trainer(run_dir), run_dir / "checkpoint-4", r"no manifest\.json.*or True for the newest one")


def test_everything_damaged(run_dir):
    for step in (3, 4):
        (run_dir / f"checkpoint-{step}" / "training.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .* to resume from") as caught:
        tiny_trainer(run_dir).train(resume_from_checkpoint=True)
    assert "checkpoint-3 lacks training.pt" in str(caught.value)
    assert "checkpoint-4 lacks training.pt" in str(caught.value)


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint in"):
        tiny_trainer(tmp_path).train(resume_from_checkpoint=True)
    refuses(tiny_trainer(tmp_path), tmp_path / "checkpoint-9", "is not a folder")


def test_folder_of_a_model(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    refuses(tiny_trainer(tmp_path / "run"), tmp_path / "model", "not written by a trainer of fastrlhf")


def test_checkpoint_of_another_trainer(tmp_path):
    """The files that transformers' trainers (and so TRL's) write."""
    folder = tmp_path / "checkpoint-7"
    tiny_llama().save_pretrained(folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, folder / name)
    (folder / "trainer_state.json").write_text("{}")
    refuses(tiny_trainer(tmp_path / "run"), folder, "not written by a trainer of fastrlhf")


def lora():
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


OTHERS = {
    "wider": (lambda: {"model": tiny_llama(hidden_size=32)}, "is a checkpoint of another model"),
    "deeper": (lambda: {"model": tiny_llama(num_hidden_layers=3)}, "is a checkpoint of another model"),
    "shallower": (lambda: {"model": tiny_llama(num_hidden_layers=1)}, "is a checkpoint of another model"),
    "architecture": (lambda: {"model": tiny_gpt2()}, "is a checkpoint of another model"),
    "adapter": (lambda: {"peft_config": lora()}, "a policy without an adapter, and this one has one"),
    "critic": (lambda: {"value_model": tiny_llama_classifier()}, "is a checkpoint of another model"),
    "seed": (lambda: {"seed": 8}, "was written with seed=7, and this run has seed=8: set it back"),
    "data-seed": (lambda: {"data_seed": 8}, "was written with data_seed=7, and this run has data_seed=8"),
    "batch": (
        lambda: {"per_device_train_batch_size": 4},
        "was written with batch_size=8, and .* batch_size=4",
    ),
    "prompts": (lambda: {"train_dataset": tiny_prompts(9)}, "was written with prompts=16, and .* prompts=9"),
}


@pytest.mark.parametrize(("options", "message"), OTHERS.values(), ids=OTHERS)
def test_checkpoint_of_another_run(finished, tmp_path, options, message):
    said = refuses(tiny_trainer(tmp_path, **options()), finished / "checkpoint-4", message)
    assert "resume" in said


def test_checkpoint_of_another_critic_and_an_optimizer_without_state(tmp_path):
    """Nothing but the critic's own shape tells the two apart."""
    critic = tiny_llama_classifier()
    tiny_trainer(tmp_path, value_model=critic, optim="sgd", **SAVE_EVERY_STEP, total_episodes=8).train()
    wider = tiny_trainer(tmp_path, value_model=tiny_llama_classifier(intermediate_size=48), optim="sgd")
    refuses(wider, tmp_path / "checkpoint-1", "of the critic is")


def test_checkpoint_with_another_adapter(tmp_path):
    tiny_trainer(tmp_path, peft_config=lora(), **SAVE_EVERY_STEP, total_episodes=8).train()
    folder = tmp_path / "checkpoint-1"
    larger = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    elsewhere = LoraConfig(r=2, target_modules=["k_proj"], task_type="CAUSAL_LM")
    for config in (larger, elsewhere):
        refuses(tiny_trainer(tmp_path, peft_config=config), folder, "is a checkpoint of another model")
    refuses(tiny_trainer(tmp_path), folder, "a policy with an adapter, and this one has none")


# A disk that is full, or not writable


def train_in_little_space(run_dir, bytes_a_file):
    """Files may not grow beyond a limit while step 2 is saved."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    trainer = tiny_trainer(run_dir, **SAVE_EVERY_STEP)

    def limit(phase):
        full = phase == "saving" and trainer.state.global_step in (2, 3)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file if full else hard, hard))
        if phase == "rollout" and trainer.state.global_step in (2, 3):
            assert steps(run_dir) == [1]
            assert hidden(run_dir) == []

    trainer.phase_listeners.append(limit)
    trainer.train()


@pytest.mark.parametrize("bytes_a_file", [0, 100, 3_000, 10_000])
def test_full_disk_in_the_middle(tmp_path, bytes_a_file):
    assert process.run(train_in_little_space, tmp_path / "run", bytes_a_file, stderr=tmp_path / "err") == 0
    assert "training goes on, and the next step tries again" in (tmp_path / "err").read_text()
    assert steps(tmp_path / "run") == [1, 4]
    for _, path in checkpoints(tmp_path / "run"):
        check_checkpoint(path)
    assert hidden(tmp_path / "run") == []


def failing_save(monkeypatch, failing, error):
    """Make the saves of some steps fail half-way."""
    write = state.write_state

    def half(trainer, folder):
        write(trainer, folder)
        if trainer.state.global_step in failing:
            raise error

    monkeypatch.setattr(state, "write_state", half)


def test_a_save_that_failed_is_tried_after_the_next_step(tmp_path, monkeypatch):
    failing_save(monkeypatch, {2}, OSError(28, "No space left on device"))
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.warns(UserWarning, match=r"could not write .*checkpoint-2 \(OSError.*MB free\)"):
        trainer.train()
    assert steps(tmp_path) == [3, 4]


def test_the_last_save_raises(tmp_path, monkeypatch):
    failing_save(monkeypatch, {4}, OSError(28, "No space left on device"))
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(
        CheckpointError, match=r"could not write .*checkpoint-4.*earlier checkpoints are untouched"
    ):
        trainer.train()
    assert steps(tmp_path) == [2]
    assert hidden(tmp_path) == []


def test_an_old_checkpoint_of_the_same_step_stays_if_the_rename_fails(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 2, write_small)
    rename = Path.rename

    def refuse(self, target):
        if self.name.endswith(f"2.{os.getpid()}.tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="could not write"):
        save_checkpoint(tmp_path, 2, lambda folder: (folder / "new").write_text("new"))
    check_checkpoint(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "a.bin").is_file()
    assert hidden(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes, where the test may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a file system needs privileges")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_disk_that_fills_up(small_disk):
    """Room for a checkpoint and a half: the second never fits, the first stays."""
    trainer = tiny_trainer(small_disk, **SAVE_EVERY_STEP)
    filled = small_disk / "filling"

    def fill(phase):
        if phase == "rollout" and trainer.state.global_step == 1:
            size = sum(path.stat().st_size for path in (small_disk / "checkpoint-1").rglob("*"))
            free = shutil.disk_usage(small_disk).free
            filled.write_bytes(b"0" * max(0, free - size // 2))

    trainer.phase_listeners.append(fill)
    with (
        pytest.raises(CheckpointError, match=r"could not write .*checkpoint-4.* 0 MB free"),
        pytest.warns(UserWarning),
    ):
        trainer.train()
    assert steps(small_disk) == [1]
    assert hidden(small_disk) == []
    filled.unlink()
    trainer.phase_listeners.clear()
    trainer.train(resume_from_checkpoint=True)
    assert steps(small_disk)[0] == 1
    assert trainer.state.global_step == 4


def test_directory_that_cannot_be_written(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", save_strategy="steps", save_steps=4)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match=r"could not write .*run/checkpoint-4.*set another output_dir"):
        trainer.train()


def test_read_only_directory(tmp_path):
    run = tmp_path / "run"
    trainer = tiny_trainer(run, **SAVE_EVERY_STEP)
    run.mkdir(exist_ok=True)
    run.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # the administrator may write anywhere
    try:
        with pytest.raises(CheckpointError, match="PermissionError"), pytest.warns(UserWarning):
            trainer.train()
    finally:
        if user == 0:
            os.seteuid(0)
        run.chmod(0o755)
    assert trainer.state.global_step == 4
    assert list(run.iterdir()) == []


# What it holds


POLICIES = {
    "llama": lambda: {"model": tiny_llama()},
    "gpt2": lambda: {"model": tiny_gpt2()},
    "tied": lambda: {"model": tiny_llama(tie_word_embeddings=True)},
    "lora": lambda: {"peft_config": lora()},
    "lora-everywhere": lambda: {
        "peft_config": LoraConfig(r=2, target_modules=["q_proj", "k_proj", "down_proj"], lora_alpha=16)
    },
    "lora-gpt2": lambda: {
        "model": tiny_gpt2(),
        "peft_config": LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
    },
    "dora": lambda: {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)},
    "lora-and-norm": lambda: {
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
    },
    "lora-tied": lambda: {"model": tiny_llama(tie_word_embeddings=True), "peft_config": lora()},
}


def logits(model):
    """Of two rows, by the operations that training uses: the same weights give the same bits."""
    accelerate(model)
    tokens = torch.arange(2 * 7).view(2, 7) % WORDS
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


@pytest.mark.parametrize("case", POLICIES)
def test_policy_and_tokenizer_load_with_transformers(tmp_path, case):
    trainer = tiny_trainer(tmp_path, **POLICIES[case](), **SAVE_EVERY_STEP, learning_rate=0.05)
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(trainer.policy_model)
    start = logits(POLICIES[case]().get("model", tiny_llama()))
    moved = (expected - start).abs().max()
    assert moved > 1e-4
    if "peft_config" in POLICIES[case]():
        assert (logits(loaded) - expected).abs().max() < 1e-3 * moved
        base = POLICIES[case]().get("model", tiny_llama())
        assert torch.equal(logits(PeftModel.from_pretrained(base, folder / "adapter")), expected)
    else:
        assert torch.equal(logits(loaded), expected)
    assert not any("lora" in name for name in loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("t3 t4")["input_ids"] == [3, 4]
    assert tokenizer.pad_token == "<pad>"


@pytest.mark.parametrize("case", POLICIES)
def test_a_save_keeps_every_bit_of_the_training_model(tmp_path, case):
    trainer = tiny_trainer(tmp_path, **POLICIES[case](), learning_rate=0.05, total_episodes=8)
    trainer.train()
    before, training = snapshot(trainer), trainer.policy_model.training
    for _ in range(3):
        trainer._save(required=True)
    assert same(snapshot(trainer), before)
    assert trainer.policy_model.training is training


def test_save_model(tmp_path):
    trainer = tiny_trainer(tmp_path, total_episodes=8)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(trainer.policy_model)
    )
    refuses(tiny_trainer(tmp_path), tmp_path / "saved", "no manifest")


def test_history_is_in_the_checkpoint(finished):
    saved = json.loads((finished / "checkpoint-3" / "trainer_state.json").read_text())
    assert [row["step"] for row in saved["log_history"]] == [1, 2, 3]
    assert saved["episode"] == 24
    trainer = tiny_trainer(finished)
    trainer.train(resume_from_checkpoint=finished / "checkpoint-3")
    assert metrics(trainer)[:3] == [
        {name: row[name] for name in kept}
        for row, kept in zip(saved["log_history"], metrics(trainer), strict=False)
    ]
