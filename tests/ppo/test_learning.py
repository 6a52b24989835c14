"""PPO learns: a random model finds the rewarded word, and does not when what drives it is taken away."""

import pytest
import torch

from fastrlhf.ppo import trainer as ppo_trainer
from tests.support.toy import VOCABULARY, toy_model, toy_prompts, toy_trainer


def share_of_w7(prompts, completions):
    """One of 24 tokens: 1/24 by chance."""
    return [completion.split().count("w7") / 8 for completion in completions]


def scores_of(tmp_path, steps, **options):
    """Mean score of each step of a run."""
    torch.manual_seed(0)
    model = toy_model(hidden_size=32, intermediate_size=64, initializer_range=0.02)
    settings = {
        "model": model,
        "reward_model": share_of_w7,
        "per_device_train_batch_size": 32,
        "num_mini_batches": 2,
        "num_ppo_epochs": 4,
        "response_length": 8,
        "temperature": 1.0,
        "kl_coef": 0.0,
        "total_episodes": 32 * steps,
        "learning_rate": 1e-2,
        "dataset": toy_prompts(64),
        **options,
    }
    trainer = toy_trainer(tmp_path, **settings)
    trainer.value_model.score.weight.data.zero_()
    trainer.value_model.score.bias.data.zero_()
    trainer.train()
    return [row["objective/scores"] for row in trainer.state.log_history if "objective/scores" in row]


def test_ppo_learns_the_rewarded_word(tmp_path):
    scores = scores_of(tmp_path, 24)
    assert scores[0] < 0.1
    assert sum(scores[-3:]) / 3 > 0.8


@pytest.mark.parametrize("broken", ["no_advantage", "wrong_sign", "no_learning_rate"])
def test_a_broken_ppo_does_not_learn(tmp_path, monkeypatch, broken):
    made = ppo_trainer.make_experience

    def breaking(*args, **kwargs):
        experience = made(*args, **kwargs)
        experience.advantages *= {"no_advantage": 0.0, "wrong_sign": -1.0}.get(broken, 1.0)
        return experience

    monkeypatch.setattr(ppo_trainer, "make_experience", breaking)
    scores = scores_of(tmp_path, 12, learning_rate=1e-8 if broken == "no_learning_rate" else 1e-2)
    # 32 x 8 tokens a step: chance is 1/24, and its standard error over the last three steps is 0.007
    assert sum(scores[-3:]) / 3 < 1 / VOCABULARY + 0.05
