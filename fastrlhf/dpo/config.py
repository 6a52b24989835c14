"""Every option of direct preference optimization, by TRL 1.16's names and with its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrlhf.trainers.config import TrainerConfig, check_at_least, check_one_of, option, refuse

LOSSES = ("sigmoid", "ipo")
_OTHER_LOSS = "belongs to a loss that is not supported: leave it out"
_REFUSED = {
    "ld_alpha": ((None,), "is not supported: leave it out"),
    "f_divergence_type": (("reverse_kl",), "is not supported: leave it out"),
    "f_alpha_divergence_coef": ((0.5,), "belongs to a divergence that is not supported: leave it out"),
    "use_weighting": ((False,), "is not supported: leave it out"),
    "discopop_tau": ((0.05,), _OTHER_LOSS),
    "sync_ref_model": ((False,), "is not supported: the reference stays as it is"),
    "ref_model_mixup_alpha": ((0.6,), "belongs to sync_ref_model, which is not supported: leave it out"),
    "ref_model_sync_steps": ((512,), "belongs to sync_ref_model, which is not supported: leave it out"),
}


@dataclass
class DPOConfig(TrainerConfig):
    """Arguments of `DPOTrainer`, on top of `transformers.TrainingArguments`.

    Names, types and defaults are those of `trl==1.16.0`'s `DPOConfig`; fastrlhf's own options are `TrainerConfig`'s.
    `help` of each field says what it does.

    Raises:
        ValueError: a value outside its range, or an option that is not supported; the message names the field, its
            value and the mend.
    """

    learning_rate: float = option(1e-6, "The initial learning rate of the optimizer.")

    # The models
    router_aux_loss_coef: float | None = option(
        None, "Only 0.0, which a mixture of experts needs: its auxiliary loss is not supported."
    )
    disable_dropout: bool = option(True, "Set every dropout of policy and reference to zero.")

    # The data
    truncation_mode: str = option(
        "keep_start", "'keep_start' or 'keep_end': what stays of a longer sequence."
    )
    padding_free: bool = option(
        False, "Compute without padding whatever the attention is; where it is ours, that is done anyhow."
    )
    precompute_ref_log_probs: bool = option(
        False, "Find the reference's log-probabilities once, before training, and keep no reference."
    )
    precompute_ref_batch_size: int | None = option(
        None, "Pairs at once for that; None: as many as in training, or in evaluation."
    )

    # Training
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": "'sigmoid' (with label_smoothing cDPO's), 'ipo', or both in a list, weighed and added."
        },
    )
    loss_weights: list[float] | None = option(None, "The weight of each of loss_type; None: one.")
    ld_alpha: float | None = option(None, "Not supported.")
    f_divergence_type: str = option("reverse_kl", "No other is supported.")
    f_alpha_divergence_coef: float = option(0.5, "Not supported.")
    label_smoothing: float = option(
        0.0, "The share of labels taken to be wrong, in the sigmoid loss (conservative DPO); below 0.5."
    )
    beta: float = option(0.1, "How dear it is to leave the reference; IPO's tau.")
    use_weighting: bool = option(False, "Not supported.")
    discopop_tau: float = option(0.05, "Not supported.")
    sync_ref_model: bool = option(False, "Not supported.")
    ref_model_mixup_alpha: float = option(0.6, "Not supported.")
    ref_model_sync_steps: int = option(512, "Not supported.")

    def __post_init__(self):
        refuse(self, _REFUSED)
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        super().__post_init__()
        check_one_of(
            self, {"truncation_mode": ("keep_start", "keep_end"), "router_aux_loss_coef": (None, 0.0)}
        )
        check_at_least(self, {"precompute_ref_batch_size": 1})
        unknown = [name for name in self.loss_type if name not in LOSSES]
        if unknown or not self.loss_type:
            raise ValueError(f"loss_type is {self.loss_type}, expected of {', '.join(map(repr, LOSSES))}")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} entries and loss_type {len(self.loss_type)}: "
                "give each a weight"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected at least 0 and below 0.5")
        if self.label_smoothing and "sigmoid" not in self.loss_type:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, which changes the sigmoid loss alone, and loss_type is "
                f"{self.loss_type}: leave it out"
            )
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected more than 0")
        if self.unpadded is False and self.padding_free:
            raise ValueError("unpadded=False and padding_free=True contradict each other: leave one out")
