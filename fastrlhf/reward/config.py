"""Every option of a reward model's training, by TRL 1.16's names and with its defaults."""

from __future__ import annotations

from dataclasses import dataclass

from fastrlhf.trainers.config import TrainerConfig, check_at_least, option


@dataclass
class RewardConfig(TrainerConfig):
    """Arguments of `RewardTrainer`, on top of `transformers.TrainingArguments`.

    Names, types and defaults are those of `trl==1.16.0`'s `RewardConfig`; fastrlhf's own options are `TrainerConfig`'s.
    `help` of each field says what it does.

    Raises:
        ValueError: a value outside its range, or an option that is not supported; the message names the field, its
            value and the mend.
    """

    learning_rate: float = option(1e-4, "The initial learning rate of the optimizer.")
    chat_template_path: str | None = option(None, "A Jinja file with the chat template to use and keep.")
    disable_dropout: bool = option(True, "Set every dropout of the model to zero.")
    eos_token: str | None = option(None, "The token that ends a text or turn; the tokenizer's if None.")
    max_length: int | None = option(
        1024, "Pairs of which one sequence is longer, in tokens, are left out; None: none is."
    )
    center_rewards_coefficient: float | None = option(
        None, "Weighs the squared sum of a pair's rewards, which draws their mean to zero; 0.01 is usual."
    )

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"center_rewards_coefficient": 0})
