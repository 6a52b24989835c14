"""Signals: the step is finished and saved; a second one ends the process at once; nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from transformers import TrainerCallback

from fastrlhf.ppo.rewards import RewardError
from fastrlhf.trainers.checkpoint import check_checkpoint, checkpoints, find_checkpoint
from fastrlhf.trainers.interrupt import Interrupts
from tests.support import process
from tests.support.runs import metrics, same, snapshot
from tests.support.tiny import tiny_prompts, tiny_reward, tiny_trainer

SIGNALS = [signal.SIGINT, signal.SIGTERM]
PHASES = ["rollout", "reward", "evaluate", "update", "saving"]
OPTIONS = {"save_strategy": "steps", "save_steps": 1, "num_mini_batches": 2}


class Signaller:
    """Sends a signal when a phase begins in the second step."""

    def __init__(self, trainer, phase, number, times=1):
        self.trainer, self.phase, self.number, self.times = trainer, phase, number, times
        trainer.phase_listeners.append(self)

    def __call__(self, phase):
        step = self.trainer.state.global_step + (phase != "saving")
        if phase == self.phase and step == 2:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    trainer = tiny_trainer(tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    return trainer


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("phase", PHASES)
def test_signal_in_each_phase(tmp_path, whole, phase, number, capsys):
    trainer = tiny_trainer(tmp_path, **{**OPTIONS, "save_steps": 1 if phase == "saving" else 100})
    before = [signal.getsignal(each) for each in SIGNALS]
    Signaller(trainer, phase, number)
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 128 + number
    assert trainer.state.global_step == 2
    assert f"{number.name}: finishing this step, then a checkpoint" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in SIGNALS] == before
    check_checkpoint(tmp_path / "checkpoint-2")
    assert find_checkpoint(tmp_path, True).name == "checkpoint-2"

    resumed = tiny_trainer(tmp_path, **OPTIONS)
    resumed.train(resume_from_checkpoint=True)
    assert same(metrics(resumed), metrics(whole))
    assert same(snapshot(resumed), snapshot(whole))


def test_signal_saves_though_saving_is_off(tmp_path):
    trainer = tiny_trainer(tmp_path)
    Signaller(trainer, "reward", signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer.train()
    assert [step for step, _ in checkpoints(tmp_path)] == [2]


@pytest.mark.parametrize("event", ["on_save", "on_evaluate", "on_step_end", "on_log", "on_step_begin"])
def test_signal_between_phases(tmp_path, event):
    class Signal(TrainerCallback):
        pass

    def send(self, args, state, control, **_):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(Signal, event, send)
    options = {"eval_dataset": tiny_prompts(2), "eval_strategy": "steps", "eval_steps": 1}
    trainer = tiny_trainer(tmp_path, **OPTIONS, **options, callbacks=[Signal()])
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.state.global_step == (3 if event == "on_step_begin" else 2)
    check_checkpoint(tmp_path / f"checkpoint-{trainer.state.global_step}")


def test_signal_in_the_last_step(tmp_path):
    trainer = tiny_trainer(tmp_path, **OPTIONS, total_episodes=16)
    Signaller(trainer, "update", signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 130
    assert trainer.state.global_step == 2


def test_a_signal_does_not_stop_the_next_run(tmp_path):
    trainer = tiny_trainer(tmp_path)
    Signaller(trainer, "reward", signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer.train()
    trainer.phase_listeners.clear()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_error_after_a_signal(tmp_path):
    """The run ends with the error; handlers are back, and the old signal does not stop the next run."""
    broken = True

    def reward(prompts, completions):
        if broken and trainer.state.global_step == 1:
            raise ConnectionError
        return tiny_reward(prompts, completions)

    noted = []
    mine = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        trainer = tiny_trainer(tmp_path, reward_model=reward)
        Signaller(trainer, "rollout", signal.SIGTERM)
        with pytest.raises(RewardError):
            trainer.train()
        assert noted == []
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert noted == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, mine)
    broken = False
    trainer.phase_listeners.clear()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_a_handler_that_python_did_not_set():
    """`signal.signal` gives None for one that a C library installed; there is nothing better to restore."""
    interrupts = Interrupts()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with interrupts:
        interrupts._before[signal.SIGTERM] = None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
    signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_train_in_a_thread(tmp_path, whole):
    """Python has no handlers there: the run goes on without them."""
    trainer = tiny_trainer(tmp_path, **OPTIONS)
    before = [signal.getsignal(each) for each in SIGNALS]
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert same(metrics(trainer), metrics(whole))
    assert [signal.getsignal(each) for each in SIGNALS] == before


# Processes


def train_and_signal(run_dir, phase, number, times):
    trainer = tiny_trainer(run_dir, **OPTIONS)
    Signaller(trainer, phase, number, times)
    trainer.train()


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("phase", PHASES)
def test_second_signal_ends_the_process_at_once(tmp_path, phase, number):
    run_dir = tmp_path / "run"
    assert process.run(train_and_signal, run_dir, phase, number, 2, stderr=tmp_path / "err") == -number
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert find_checkpoint(run_dir, True).name == "checkpoint-1"
    assert [step for step, _ in checkpoints(run_dir)] == [1]


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_exit_code_of_a_script(tmp_path, number):
    """From outside, at any moment: 128 + signal, no traceback, a whole checkpoint."""
    script = (
        "import sys\n"
        "from tests.support.tiny import tiny_trainer\n"
        "trainer = tiny_trainer(sys.argv[1], total_episodes=80_000)\n"
        "trainer.phase_listeners.append(lambda phase: print(phase, flush=True))\n"
        "trainer.train()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "err").open("w"),
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    next(line for line in child.stdout if line == "update\n")
    child.send_signal(number)
    child.stdout.read()
    assert child.wait(60) == 128 + number
    errors = (tmp_path / "err").read_text()
    assert "Traceback" not in errors
    assert f"{number.name}: finishing this step" in errors
    check_checkpoint(find_checkpoint(tmp_path / "run", True))
