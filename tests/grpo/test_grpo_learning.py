"""GRPO and RLOO learn to add by exact match alone, and do not when what drives them is taken away."""

import pytest

from tests.support.groups import SIDES, group_trainer
from tests.support.tiny import tiny_llama

SUMMANDS = range(4)
ROWS = [{"prompt": f"t{a} t{b}", "answer": f"t{a + b}"} for a in SUMMANDS for b in SUMMANDS]


def exact_match(completions, answer, **_):
    """One for the sum as the first word."""
    return [float(text.split()[:1] == [right]) for text, right in zip(completions, answer, strict=True)]


def shares_right(kind, folder, steps, cls=None, **options):
    """Share of right completions in each step."""
    settings = {
        "model": tiny_llama(hidden_size=32, intermediate_size=64),
        "train_dataset": ROWS,
        "reward_funcs": exact_match,
        "per_device_train_batch_size": 256,
        "num_generations": 16,
        "max_completion_length": 1,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "beta": 0.0,
        **options,
    }
    trainer = group_trainer(kind, folder, cls=cls, **settings)
    trainer.train()
    return [row["reward"] for row in trainer.state.log_history]


@pytest.mark.parametrize("kind", SIDES)
def test_it_learns_to_add(tmp_path, kind):
    shares = shares_right(kind, tmp_path, 40)
    assert shares[0] < 0.1
    assert sum(shares[-5:]) / 5 > 0.85


@pytest.mark.parametrize("factor", [0.0, -1.0], ids=["no advantage", "wrong sign"])
@pytest.mark.parametrize("kind", SIDES)
def test_broken_it_does_not(tmp_path, kind, factor):
    class Broken(SIDES[kind][0]):
        def advantages(self, rewards, total):
            return factor * super().advantages(rewards, total)

    shares = shares_right(kind, tmp_path, 16, cls=Broken)
    # 256 a step: chance is 1/32, and its standard error over the last three steps is 0.006
    assert sum(shares[-3:]) / 3 < 1 / 32 + 0.03
