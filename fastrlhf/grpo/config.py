"""Every option of a GRPO or an RLOO run: TRL 1.16's names and defaults, then what fastrlhf adds."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from fastrlhf.grpo.refused import check_refused
from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.options import check_common
from fastrlhf.trainers.config import check_above, check_at_least, check_one_of, option, settled

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")
GENERATION_KWARGS = (
    "max_new_tokens",
    "min_new_tokens",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
)


def _as_in_ppo(name: str) -> Any:
    """A field with the default and the help that it has in `PPOConfig`."""
    ppo: Field = PPOConfig.__dataclass_fields__[name]
    return field(default=ppo.default, metadata=ppo.metadata)


@dataclass
class GroupConfig(TrainingArguments):
    """What `GRPOConfig` and `RLOOConfig` share; `help` of each field says what it does.

    Raises:
        ValueError: a value outside its range, or an option of TRL's that is not supported; the message names the field.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [  # that may be JSON on a command line
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "generation_kwargs",
        "chat_template_kwargs",
    ]

    # As in TrainingArguments, with TRL's defaults
    learning_rate: float = option(1e-6, "The initial learning rate of the optimizer.")
    logging_steps: float = option(10, "Optimizer updates between two logs, over which metrics are averaged.")
    gradient_checkpointing: bool = _as_in_ppo("gradient_checkpointing")
    bf16: bool | None = _as_in_ppo("bf16")
    remove_unused_columns: bool | None = option(
        False, "Give reward functions no column of the dataset but `prompt`."
    )

    # As in TRL
    model_init_kwargs: dict[str, Any] | str | None = option(
        None, "Keyword arguments of from_pretrained for models that are given by name."
    )
    trust_remote_code: bool = option(
        False, "Let models and tokenizers given by name bring code of their own."
    )
    router_aux_loss_coef: float | None = option(
        None, "Not supported: the load-balancing loss of mixtures of experts."
    )
    disable_dropout: bool = option(False, "Turn dropout off; a model that has some is refused otherwise.")
    num_generations: int | None = option(8, "Completions of each prompt.")
    num_generations_eval: int | None = option(
        None, "Completions of each prompt in evaluation; num_generations if None."
    )
    max_completion_length: int | None = option(512, "Longest completion, in tokens.")
    ds3_gather_for_generation: bool = option(True, "Not supported, as DeepSpeed.")
    shuffle_dataset: bool | None = option(True, "Shuffle the prompts in every epoch.")
    pad_to_multiple_of: int | str | None = option(
        "auto", "Not supported but as 'auto' or None: nothing is computed on padding."
    )
    generation_batch_size: int | None = option(
        None, "Completions of one rollout; per_device_train_batch_size x steps_per_generation if None."
    )
    steps_per_generation: int | None = option(
        None, "Micro-batches of one rollout; gradient_accumulation_steps if None."
    )
    temperature: float = option(1.0, "Divides the logits in sampling and in every log-probability.")
    top_p: float = option(1.0, "Sample among the most probable tokens that have this mass together.")
    top_k: int = option(0, "Sample among so many most probable tokens; 0: all.")
    min_p: float | None = option(
        None, "Sample among tokens at least this much as probable as the most probable one."
    )
    generation_kwargs: dict | str | None = option(
        None, f"Settings of the generator that go before the others: {', '.join(GENERATION_KWARGS)}."
    )
    chat_template_kwargs: dict | str | None = option(
        None, "Keyword arguments of the tokenizer's apply_chat_template."
    )
    repetition_penalty: float = option(
        1.0, "Makes tokens that were there before less probable, if more than 1."
    )
    cache_implementation: str | None = option(None, "Not supported: the generator has a cache of its own.")
    use_vllm: bool = option(False, "Not supported: rollouts run on fastrlhf's own generator.")
    vllm_mode: str = option("colocate", "Not supported, as use_vllm.")
    vllm_model_impl: str = option("vllm", "Not supported, as use_vllm.")
    vllm_enable_sleep_mode: bool = option(False, "Not supported, as use_vllm.")
    vllm_structured_outputs_regex: str | None = option(None, "Not supported, as use_vllm.")
    vllm_server_base_url: str | None = option(None, "Not supported, as use_vllm.")
    vllm_server_host: str = option("0.0.0.0", "Not supported, as use_vllm.")
    vllm_server_port: int = option(8000, "Not supported, as use_vllm.")
    vllm_server_timeout: float = option(240.0, "Not supported, as use_vllm.")
    vllm_group_port: int = option(51216, "Not supported, as use_vllm.")
    vllm_gpu_memory_utilization: float = option(0.3, "Not supported, as use_vllm.")
    vllm_max_model_length: int | None = option(None, "Not supported, as use_vllm.")
    vllm_tensor_parallel_size: int = option(1, "Not supported, as use_vllm.")
    beta: float = option(0.0, "Weight of the KL to the reference; 0: no reference.")
    num_iterations: int = option(1, "Passes over each rollout.")
    epsilon: float = option(0.2, "Distance from one at which the probability ratio is clipped.")
    epsilon_high: float | None = option(None, "Upper clip distance; epsilon if None.")
    reward_weights: list[float] | None = option(None, "Weights of the rewards; all 1 if None.")
    mask_truncated_completions: bool = option(False, "Learn nothing from completions without an end token.")
    sync_ref_model: bool = option(False, "Move the reference towards the policy, every ref_model_sync_steps.")
    ref_model_mixup_alpha: float = option(0.6, "How far: the policy's share in the reference.")
    ref_model_sync_steps: int = option(512, "Optimizer updates between two such moves.")
    log_completions: bool = option(
        False, "Print some completions with their rewards, and write all to a file, at each log."
    )
    log_multimodal: bool = option(True, "Not supported: there are no images.")
    num_completions_to_print: int | None = option(None, "How many are printed; all if None.")
    log_unique_prompts: bool = option(False, "Log one completion of each prompt alone.")
    use_transformers_continuous_batching: bool = option(
        False, "Not supported: the generator batches continuously by itself."
    )
    transformers_continuous_batching_config: dict | str | None = option(
        None, "Not supported, as use_transformers_continuous_batching."
    )
    use_transformers_paged: bool = option(False, "Not supported, as use_transformers_continuous_batching.")

    # fastrlhf's own
    local_rollout_forward_batch_size: int = _as_in_ppo("local_rollout_forward_batch_size")
    skip_flat_groups: bool = _as_in_ppo("skip_flat_groups")
    rollout_correction_cap: float | None = _as_in_ppo("rollout_correction_cap")
    reuse_rollout_logprobs: bool | None = _as_in_ppo("reuse_rollout_logprobs")
    accelerate: bool = _as_in_ppo("accelerate")
    packing: bool | None = _as_in_ppo("packing")
    trainable_layers: int | None = _as_in_ppo("trainable_layers")
    frozen_states_bytes: str = _as_in_ppo("frozen_states_bytes")
    packed_weight_bytes: str = _as_in_ppo("packed_weight_bytes")
    device_memory: str | None = _as_in_ppo("device_memory")
    host_memory: str | None = _as_in_ppo("host_memory")
    offload_dir: str | None = _as_in_ppo("offload_dir")
    offload_activations: bool = _as_in_ppo("offload_activations")
    keep_last: int | None = _as_in_ppo("keep_last")
    max_skipped_updates: int = _as_in_ppo("max_skipped_updates")

    def __post_init__(self):
        with settled(self):
            super().__post_init__()
        self._check()
        self._resolve_sizes()

    def _check(self) -> None:
        """Refuse what cannot be meant, before any work is done."""
        check_refused(self)
        check_common(self)
        at_least = {
            "num_generations": 2,
            "num_generations_eval": 1,
            "max_completion_length": 1,
            "generation_batch_size": 1,
            "steps_per_generation": 1,
            "num_iterations": 1,
            "beta": 0,
            "epsilon": 0,
            "epsilon_high": 0,
            "ref_model_sync_steps": 1,
            "num_completions_to_print": 1,
            "local_rollout_forward_batch_size": 1,
            "trainable_layers": 1,
            "keep_last": 1,
            "max_skipped_updates": 1,
        }
        check_at_least(self, at_least)
        check_above(self, {"temperature": 0, "rollout_correction_cap": 0})
        for name in ("num_generations", "max_completion_length"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is None, expected a number")
        if not 0 <= self.ref_model_mixup_alpha <= 1:
            raise ValueError(
                f"ref_model_mixup_alpha is {self.ref_model_mixup_alpha}, expected a number in [0, 1]"
            )
        if self.sync_ref_model and not self.beta:
            raise ValueError("sync_ref_model moves the reference, and with beta=0 there is none: set beta")
        if self.sync_ref_model and self.device_memory is not None:
            raise ValueError(
                "sync_ref_model and device_memory are set: a reference that may be away cannot be moved"
            )
        unknown = set(self.generation_kwargs or ()) - set(GENERATION_KWARGS)
        if unknown:
            raise ValueError(
                f"generation_kwargs has {', '.join(sorted(unknown))}, expected {', '.join(GENERATION_KWARGS)} alone"
            )

    def _resolve_sizes(self) -> None:
        """Fill in `steps_per_generation` and `generation_batch_size` from each other."""
        micro_batch = self.per_device_train_batch_size
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ValueError("generation_batch_size and steps_per_generation exclude each other: set one")
        if self.generation_batch_size is not None:
            if self.generation_batch_size % micro_batch:
                raise ValueError(
                    f"generation_batch_size is {self.generation_batch_size}, which per_device_train_batch_size="
                    f"{micro_batch} does not divide"
                )
            self.steps_per_generation = self.generation_batch_size // micro_batch
        else:
            self.steps_per_generation = self.steps_per_generation or self.gradient_accumulation_steps
            self.generation_batch_size = micro_batch * self.steps_per_generation
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation is {self.steps_per_generation}, which gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} does not divide: an optimizer update has to be of one rollout"
            )
        if self.generation_batch_size % self.num_generations:
            raise ValueError(
                f"generation_batch_size is {self.generation_batch_size}, which num_generations={self.num_generations} "
                "does not divide: a rollout has to hold whole groups"
            )


@dataclass
class GRPOConfig(GroupConfig):
    """Arguments of `GRPOTrainer`, on top of `transformers.TrainingArguments`.

    Names, types and defaults are those of `trl==1.16.0`'s `GRPOConfig`; the fields that `GroupConfig` calls fastrlhf's
    own come on top, and leave GRPO as it is by default.
    """

    cast_lm_head_to_fp32: bool = option(
        False, "Not supported: log-probabilities are computed in float32 as it is."
    )
    delta: float | None = option(
        None, "Bounds the loss of a token with negative advantage (INTELLECT-2); more than 1 + epsilon_high."
    )
    sapo_temperature_neg: float = option(1.05, "Not supported, as loss_type='sapo'.")
    sapo_temperature_pos: float = option(1.0, "Not supported, as loss_type='sapo'.")
    vespo_k_pos: float = option(2.0, "Not supported, as loss_type='vespo'.")
    vespo_lambda_pos: float = option(3.0, "Not supported, as loss_type='vespo'.")
    vespo_k_neg: float = option(3.0, "Not supported, as loss_type='vespo'.")
    vespo_lambda_neg: float = option(2.0, "Not supported, as loss_type='vespo'.")
    importance_sampling_level: str = option(
        "token", "'token': a ratio for each token; 'sequence': the mean of a completion's log-ratios (GSPO)."
    )
    multi_objective_aggregation: str = option(
        "sum_then_normalize",
        "'normalize_then_sum': each reward is scaled within its group, then all are added up (GDPO).",
    )
    scale_rewards: str = option(
        "group", "Divide advantages by the rewards' deviation: of the 'group', of the 'batch', or 'none'."
    )
    loss_type: str = option(
        "dapo", f"How token losses are averaged: {', '.join(LOSS_TYPES)} (see grpo.loss)."
    )
    top_entropy_quantile: float = option(
        1.0, "Learn from this share of tokens alone, those of highest entropy."
    )
    entropy_coef: float = option(0.0, "Weight of an entropy bonus.")
    use_adaptive_entropy: bool = option(False, "Steer entropy_coef, and apply it below entropy_target alone.")
    entropy_coef_min: float = option(0.0, "Lowest entropy_coef that steering goes to.")
    entropy_coef_max: float = option(1.0, "Highest entropy_coef that steering goes to.")
    entropy_coef_delta: float = option(0.005, "How far entropy_coef is steered in an update.")
    entropy_target: float = option(0.2, "Entropy of a token (nats) below which entropy_coef rises.")
    max_tool_calling_iterations: int | None = option(None, "Not supported: there are no tools.")
    vllm_importance_sampling_correction: bool = option(
        True, "Not supported, as use_vllm (see rollout_correction_cap)."
    )
    vllm_importance_sampling_mode: str = option("sequence_mask", "Not supported, as use_vllm.")
    vllm_importance_sampling_clip_max: float | None = option(3.0, "Not supported, as use_vllm.")
    vllm_importance_sampling_clip_min: float | None = option(None, "Not supported, as use_vllm.")
    off_policy_mask_threshold: float | None = option(
        None,
        "KL to the rollout's policy (nats a token) above which a completion with negative advantage is left out.",
    )
    use_bias_correction_kl: bool = option(True, "Multiply the KL in the loss by the probability ratio.")
    log_completions_hub_repo: str | None = option(
        None, "Not supported: completions are written to output_dir."
    )
    vllm_importance_sampling_cap: float | None = option(None, "Not supported, as use_vllm.")

    def _check(self) -> None:
        self.scale_rewards = {True: "group", False: "none"}.get(self.scale_rewards, self.scale_rewards)
        super()._check()
        check_one_of(
            self,
            {
                "loss_type": LOSS_TYPES,
                "scale_rewards": ("group", "batch", "none"),
                "importance_sampling_level": ("token", "sequence"),
                "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
            },
        )
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        check_above(self, {"delta": 1 + high, "off_policy_mask_threshold": 0})
        if not 0 <= self.top_entropy_quantile <= 1:
            raise ValueError(
                f"top_entropy_quantile is {self.top_entropy_quantile}, expected a number in [0, 1]"
            )
        if self.entropy_coef_min > self.entropy_coef_max:
            raise ValueError(
                f"entropy_coef_min is {self.entropy_coef_min}, expected at most entropy_coef_max="
                f"{self.entropy_coef_max}"
            )


@dataclass
class RLOOConfig(GroupConfig):
    """Arguments of `RLOOTrainer`, on top of `transformers.TrainingArguments`.

    Names, types and defaults are those of `trl==1.16.0`'s `RLOOConfig`, then fastrlhf's own.
    """

    num_generations: int | None = option(2, "Completions of each prompt.")
    beta: float = option(0.05, "Weight of the KL to the reference in the reward; 0: no reference.")
    normalize_advantages: bool = option(
        False, "Scale advantages to zero mean and unit variance over the rollout."
    )
    reward_clip_range: tuple[float, float] | None = option(
        None, "Lowest and highest reward; those beyond are clipped."
    )

    def _check(self) -> None:
        super()._check()
        bounds = self.reward_clip_range
        if bounds is not None and (len(bounds) != 2 or bounds[0] > bounds[1]):
            raise ValueError(f"reward_clip_range is {bounds}, expected the lowest and the highest reward")
