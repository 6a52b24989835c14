"""Every option of a run of supervised fine-tuning, by TRL 1.16's names and with its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastrlhf.data.packing import STRATEGIES
from fastrlhf.trainers.config import TrainerConfig, check_one_of, option


@dataclass
class SFTConfig(TrainerConfig):
    """Arguments of `SFTTrainer`, on top of `transformers.TrainingArguments`.

    Names, types and defaults are those of `trl==1.16.0`'s `SFTConfig`; fastrlhf's own options are `TrainerConfig`'s.
    `help` of each field says what it does.

    Raises:
        ValueError: a value outside its range, or an option that is not supported; the message names the field, its
            value and the mend.
    """

    _VALID_DICT_FIELDS = [*TrainerConfig._VALID_DICT_FIELDS, "dataset_kwargs"]  # noqa: RUF012

    learning_rate: float = option(2e-5, "The initial learning rate of the optimizer.")

    # The model
    router_aux_loss_coef: float | None = option(
        None, "Only 0.0, which a mixture of experts needs: its auxiliary loss is not supported."
    )
    chat_template_path: str | None = option(None, "A Jinja file with the chat template to use and keep.")

    # The data
    dataset_text_field: str = option("text", "The field of rows that are texts.")
    dataset_kwargs: dict[str, Any] | str | None = option(
        None, "{'skip_prepare_dataset': True} takes rows as they are: tokens, cut and perhaps labelled."
    )
    eos_token: str | None = option(None, "The token that ends a text or turn; the tokenizer's if None.")
    max_length: int | None = option(
        1024, "Longest sequence, in tokens, and length of a packed row; None: any."
    )
    truncation_mode: str = option(
        "keep_start", "'keep_start' or 'keep_end': what stays of a longer sequence."
    )
    shuffle_dataset: bool = option(False, "Shuffle the rows once, before they are packed.")
    packing: bool = option(False, "Pack several sequences into rows of max_length.")
    packing_strategy: str = option(
        "bfd", "'bfd' (best-fit decreasing, cuts), 'bfd_split' (and keeps what is cut off) or 'wrapped'."
    )
    padding_free: bool = option(
        False, "Compute without padding whatever the attention is; where it is ours, that is done anyhow."
    )
    eval_packing: bool | None = option(None, "Pack the evaluation's rows; None: as packing.")

    # Training
    completion_only_loss: bool | None = option(
        None, "Only completions count in the loss; None: where rows have a prompt and a completion."
    )
    assistant_only_loss: bool = option(False, "Only what the assistant says counts in the loss.")
    loss_type: str = option("nll", "'nll', or 'dft' (each token weighed by its own probability).")

    def __post_init__(self):
        super().__post_init__()
        names = {"chunked_nll": "nll", "bfd-requeue": "bfd_split"}  # TRL's old ones
        self.loss_type = names.get(self.loss_type, self.loss_type)
        self.packing_strategy = names.get(self.packing_strategy, self.packing_strategy)
        check_one_of(
            self,
            {
                "loss_type": ("nll", "dft"),
                "truncation_mode": ("keep_start", "keep_end"),
                "packing_strategy": STRATEGIES,
                "router_aux_loss_coef": (None, 0.0),
            },
        )
        unknown = set(self.dataset_kwargs or ()) - {"skip_prepare_dataset"}
        if unknown:
            raise ValueError(
                f"dataset_kwargs has {', '.join(sorted(unknown))}, expected skip_prepare_dataset alone"
            )
        if self.max_length is None and (self.packing or self.eval_packing):
            raise ValueError("max_length is None and packing=True fills rows of max_length tokens: set it")
        if self.unpadded is False and self.needs_unpadded:
            raise ValueError(
                "unpadded=False, and padding_free=True or packed rows of several sequences need batches without "
                "padding: leave unpadded out"
            )

    @property
    def packs_whole_sequences(self) -> bool:
        """Whether a row of a packed dataset is several sequences that must not see each other."""
        return bool(self.packing or self.eval_packing) and self.packing_strategy != "wrapped"

    @property
    def needs_unpadded(self) -> bool:
        """Whether batches must be without padding, whatever the attention is."""
        return self.padding_free or self.packs_whole_sequences

    @property
    def packs_eval(self) -> bool:
        """Whether the evaluation's rows are packed."""
        return self.packing if self.eval_packing is None else self.eval_packing

    @property
    def skips_preparation(self) -> bool:
        """Whether datasets are taken as they are."""
        return bool((self.dataset_kwargs or {}).get("skip_prepare_dataset", False))
