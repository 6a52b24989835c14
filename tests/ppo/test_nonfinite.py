"""A loss, gradient, reward or logit that is not a number: no weight ever becomes one."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from fastrlhf import PPOTrainer
from fastrlhf.ppo.rewards import RewardError
from fastrlhf.trainers.guard import TrainingStopped
from tests.support.runs import finite, metrics, same, snapshot
from tests.support.tiny import tiny_llama_classifier, tiny_reward, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore:step .* this update is skipped")


class Poisoned(PPOTrainer):
    """Puts `poison` into the gradient (or the loss) of the updates that `when` numbers, counted from zero."""

    when: tuple[int, ...] = ()
    poison, into = math.nan, "gradient"

    def optimizer_step(self, loss):
        self.before = snapshot(self)
        number = self.update_number = getattr(self, "update_number", -1) + 1
        if number in self.when and self.into == "gradient":
            next(self.model.parameters()).grad.view(-1)[3] = self.poison
        elif number in self.when:
            loss = torch.full_like(loss, self.poison)
        norm, skipped = super().optimizer_step(loss)
        self.seen = [*getattr(self, "seen", []), (skipped, same(self.before, snapshot(self)))]
        return norm, skipped


def poisoned(when, poison=math.nan, into="gradient"):
    return type("Poisoned", (Poisoned,), {"when": tuple(when), "poison": poison, "into": into})


@pytest.mark.parametrize("into", ["gradient", "loss"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_update_is_skipped_and_counted(tmp_path, into, poison, max_grad_norm):
    trainer = tiny_trainer(tmp_path, trainer_class=poisoned([1], poison, into), max_grad_norm=max_grad_norm)
    with pytest.warns(UserWarning, match=r"step 2: loss .*: this update is skipped \(1 in a row\)"):
        trainer.train()
    assert trainer.seen == [(False, False), (True, True), (False, False), (False, False)]
    assert [row["train/skipped_updates"] for row in metrics(trainer)] == [0, 1, 1, 1]
    assert finite(snapshot(trainer))


def test_a_step_whose_first_update_is_skipped_first(tmp_path):
    """AdamW has no state yet, and the schedule must not complain of steps in the wrong order."""
    trainer = tiny_trainer(tmp_path, trainer_class=poisoned([0]), lr_scheduler_type="linear")
    trainer.train()
    assert trainer.seen[0] == (True, True)
    assert trainer.state.global_step == 4


def test_three_in_a_row_stop_the_run(tmp_path):
    trainer = tiny_trainer(tmp_path, trainer_class=poisoned([2, 3, 4]), num_mini_batches=2)
    with pytest.raises(TrainingStopped, match="3 updates in a row were not finite") as caught:
        trainer.train()
    assert [skipped for skipped, _ in trainer.seen] == [False, False, True, True]
    folder = tmp_path / "checkpoint-2"
    assert str(folder) in str(caught.value)
    saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert finite(saved)
    assert same(dict(saved), dict(trainer.policy_model.state_dict()))


def test_stopped_run_goes_on_once_mended(tmp_path):
    with pytest.raises(TrainingStopped):
        tiny_trainer(tmp_path, trainer_class=poisoned([1, 2, 3])).train()
    trainer = tiny_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert finite(snapshot(trainer))


def test_checkpoint_of_the_last_step_is_not_replaced_by_half_a_step(tmp_path):
    """Two updates of step 3 are made before it fails: its checkpoint-2 must be the state before them."""
    options = {"num_mini_batches": 4, "save_strategy": "steps", "save_steps": 1, "max_skipped_updates": 2}
    good = tiny_trainer(tmp_path / "good", **options)
    good.train()
    trainer = tiny_trainer(tmp_path / "bad", trainer_class=poisoned([10, 11]), **options)
    with pytest.raises(TrainingStopped, match="checkpoint-2"):
        trainer.train()
    mended = tiny_trainer(tmp_path / "bad", **options)
    mended.train(resume_from_checkpoint=True)
    assert same(metrics(mended), metrics(good))
    assert same(snapshot(mended), snapshot(good))


@pytest.mark.parametrize("when", [[0, 1, 3, 4], [1, 2], [0, 2, 4, 6]])
def test_not_three_in_a_row_goes_on(tmp_path, when):
    trainer = tiny_trainer(tmp_path, trainer_class=poisoned(when), num_mini_batches=2)
    trainer.train()
    assert [number for number, (skipped, _) in enumerate(trainer.seen) if skipped] == when
    assert metrics(trainer)[-1]["train/skipped_updates"] == len(when)


def test_max_skipped_updates_is_heeded(tmp_path):
    with pytest.raises(TrainingStopped, match="1 updates in a row"):
        tiny_trainer(tmp_path / "one", trainer_class=poisoned([1]), max_skipped_updates=1).train()
    trainer = tiny_trainer(tmp_path / "five", trainer_class=poisoned(range(4)), max_skipped_updates=5)
    trainer.train()
    assert metrics(trainer)[-1]["train/skipped_updates"] == 4


def test_rows_of_a_second_run_count_afresh(tmp_path):
    """Two skipped at the end of one run and one at the start of the next are not three in a row."""
    trainer = tiny_trainer(tmp_path, trainer_class=poisoned([2, 3, 4]))
    trainer.train()
    trainer.train()
    assert trainer.guard.skipped == 3


class BreakPolicy(TrainerCallback):
    """Makes the policy's weights NaN before a step."""

    def __init__(self, step, value=math.nan):
        self.step, self.value = step, value

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == self.step:
            torch.nn.init.constant_(model.policy.lm_head.weight, self.value)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_nan_logits_in_generation(tmp_path, value):
    trainer = tiny_trainer(tmp_path, callbacks=[BreakPolicy(2, value)])
    with pytest.raises(FloatingPointError, match="the logits of row 0 are NaN at step 0") as caught:
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "manifest.json").is_file()
    assert str(tmp_path / "checkpoint-2") in str(caught.value)


def test_nan_logits_name_the_row_of_the_batch(tmp_path):
    """Only the prompt with word t5 meets a NaN embedding; three rows of the batch are generated at a time."""
    options = {"local_rollout_forward_batch_size": 3, "response_length": 1}
    trainer = tiny_trainer(tmp_path, train_dataset=[{"input_ids": [1, 2]}] * 8, **options)
    with torch.no_grad():
        trainer.policy_model.get_input_embeddings().weight[5] = math.nan
    ids = torch.tensor([[1, 2]] * 7 + [[5, 2]])
    with pytest.raises(FloatingPointError, match=r"row 7 are NaN at step 0 .* is that of layer 0"):
        trainer.generate_responses(ids, torch.ones_like(ids).bool())


def test_critic_that_breaks_down(tmp_path):
    """A critic of NaN makes every loss NaN: the policy stays as it was and the run stops."""
    critic = tiny_llama_classifier()
    torch.nn.init.constant_(critic.score.weight, math.nan)
    trainer = tiny_trainer(tmp_path, value_model=critic)
    before = snapshot(trainer)["policy"]
    with pytest.raises(TrainingStopped):
        trainer.train()
    assert same(before, snapshot(trainer)["policy"])


# Rewards that fail


class Failing:
    """`tiny_reward`, but some calls raise."""

    __name__ = "flaky_service"

    def __init__(self, failing):
        self.failing, self.calls = failing, 0

    def __call__(self, prompts, completions):
        self.calls += 1
        if self.calls in self.failing:
            raise ConnectionError("the service is away")
        return tiny_reward(prompts, completions)


def test_reward_that_raises_once_is_tried_again(tmp_path):
    good, flaky = tiny_trainer(tmp_path), tiny_trainer(tmp_path, reward_model=Failing({2}))
    good.train()
    flaky.train()
    assert same(metrics(flaky), metrics(good))
    assert flaky.scorer.rewards[0].calls == 5


def test_reward_that_always_raises(tmp_path):
    """The checkpoint that it leaves goes on, once mended, as if the reward had never failed."""
    options = {"num_mini_batches": 2, "lr_scheduler_type": "linear", "adaptive_kl_target": 1.0}
    good = tiny_trainer(tmp_path / "good", **options)
    good.train()

    failing = tiny_trainer(tmp_path / "bad", reward_model=Failing(range(3, 99)), **options)
    with pytest.raises(
        RewardError, match="flaky_service raised ConnectionError: the service is away"
    ) as caught:
        failing.train()
    message = str(caught.value)
    assert "prompt 0: 't" in message
    assert "completion 0: 't" in message
    assert str(tmp_path / "bad" / "checkpoint-2") in message
    assert isinstance(caught.value.__cause__, RewardError)
    assert sorted(path.name for path in (tmp_path / "bad").iterdir()) == ["checkpoint-2"]

    mended = tiny_trainer(tmp_path / "bad", **options)
    mended.train(resume_from_checkpoint=True)
    assert same(metrics(mended), metrics(good))
    assert same(snapshot(mended), snapshot(good))


def test_message_shows_the_row_that_fails(tmp_path):
    def picky(prompts, completions):
        if any(prompt == "t9" for prompt in prompts):
            raise KeyError("t9")
        return tiny_reward(prompts, completions)

    rows = [{"input_ids": [1]}] * 7 + [{"input_ids": [9]}]
    with pytest.raises(RewardError, match=r"prompt \d: 't9'"):
        tiny_trainer(tmp_path, train_dataset=rows, reward_model=picky).train()


def test_reward_that_fails_in_the_first_step(tmp_path):
    good = tiny_trainer(tmp_path / "good")
    good.train()
    with pytest.raises(RewardError, match="checkpoint-0"):
        tiny_trainer(tmp_path / "bad", reward_model=Failing(range(99))).train()
    mended = tiny_trainer(tmp_path / "bad")
    mended.train(resume_from_checkpoint=True)
    assert same(metrics(mended), metrics(good))
