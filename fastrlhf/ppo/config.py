"""Every option of a PPO run: TRL 1.12's names and defaults, then what fastrlhf adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import TrainingArguments

from fastrlhf.generation.run import WEIGHTS
from fastrlhf.kernels.group_advantages import GROUP_ESTIMATORS
from fastrlhf.kernels.kl import KL_ESTIMATORS
from fastrlhf.ppo.advantages import ESTIMATORS
from fastrlhf.ppo.options import check_common
from fastrlhf.trainers.config import check_above, check_at_least, check_one_of, option, settled

# Of the off-policy correction where rollouts compute with rounded weights; the source's own choice (see `Experience`).
DEFAULT_CORRECTION_CAP = 2.0


@dataclass
class PPOConfig(TrainingArguments):
    """Arguments of `PPOTrainer`, on top of `transformers.TrainingArguments`.

    The first block has the names, types and defaults of `trl==1.12.0`'s `trl.experimental.ppo.PPOConfig`; the second is
    fastrlhf's own and leaves PPO as it is by default. `help` of each field says what it does.

    Raises:
        ValueError: a value outside its range; the message names the field, its value and what was expected.
    """

    # As in TrainingArguments, with TRL's defaults
    learning_rate: float = option(3e-6, "The initial learning rate of the optimizer.")
    logging_steps: float = option(10, "Kept for TRL's scripts: PPO logs every step.")
    gradient_checkpointing: bool = option(True, "Compute activations again in the backward to save memory.")
    bf16: bool | None = option(
        None, "bfloat16 autocast on a GPU; True unless fp16. A CPU computes in float32."
    )

    # As in TRL
    dataset_num_proc: int | None = option(
        None, "Kept for TRL's scripts: prompts are tokenised in this process."
    )
    num_mini_batches: int = option(1, "Optimizer updates per epoch: minibatches that a batch is split into.")
    total_episodes: int | None = option(None, "Prompts to see; num_train_epochs of the dataset if None.")
    local_rollout_forward_batch_size: int = option(
        64, "Rows per forward pass without gradient, and per generation."
    )
    num_sample_generations: int = option(
        10, "How often completions of eval_dataset are shown during a run; 0: never."
    )
    response_length: int = option(53, "Longest response, in tokens.")
    stop_token: Literal["eos"] | None = option(None, "'eos' ends a response at the tokenizer's end token.")
    stop_token_id: int | None = option(None, "Token that ends a response; excludes stop_token.")
    temperature: float = option(0.7, "Divides the logits in sampling and in every log-probability.")
    missing_eos_penalty: float | None = option(
        None, "Taken from the score of a response without an end token."
    )
    sft_model_path: str = option("EleutherAI/pythia-160m", "Path of the policy, for scripts.")
    world_size: int | None = option(None, "Number of processes; set by the trainer.")
    num_total_batches: int | None = option(None, "Number of steps; set by the trainer.")
    micro_batch_size: int | None = option(
        None, "per_device_train_batch_size x world_size; set by the trainer."
    )
    local_batch_size: int | None = option(None, "Rows of a step in one process; set by the trainer.")
    batch_size: int | None = option(None, "Rows of a step over all processes; set by the trainer.")
    local_mini_batch_size: int | None = option(
        None, "Rows of a minibatch in one process; set by the trainer."
    )
    mini_batch_size: int | None = option(None, "Rows of a minibatch over all processes; set by the trainer.")
    push_to_hub: bool = option(False, "Push the model to the Hub when it is saved.")
    reward_model_path: str = option("EleutherAI/pythia-160m", "Path of the reward model, for scripts.")
    model_adapter_name: str | None = option(None, "PEFT adapter that is trained; 'default' if None.")
    ref_adapter_name: str | None = option(None, "PEFT adapter that is the reference; the bare base if None.")
    num_ppo_epochs: int = option(4, "Passes over each batch of experience.")
    whiten_rewards: bool = option(False, "Scale rewards to unit variance, keeping their mean.")
    kl_coef: float = option(0.05, "Weight of the KL penalty in the reward.")
    kl_estimator: Literal["k1", "k3"] = option(
        "k1", "Estimator of the KL in the reward (see kernels.kl_estimate)."
    )
    cliprange: float = option(0.2, "Distance from one at which the probability ratio is clipped.")
    vf_coef: float = option(0.1, "Weight of the value loss.")
    cliprange_value: float = option(0.2, "Distance from the old value at which the value is clipped.")
    gamma: float = option(1.0, "Discount per token.")
    lam: float = option(0.95, "Lambda of generalised advantage estimation.")
    ds3_gather_for_generation: bool = option(True, "Kept for TRL's scripts: DeepSpeed is not supported.")

    # fastrlhf's own
    advantage_estimator: Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce++"] = option(
        "gae", "How rewards become advantages; all but 'gae' have no critic (see ppo.advantages)."
    )
    num_generations: int = option(1, "Responses to each prompt; they count as rows of the batch.")
    skip_flat_groups: bool = option(
        False, "Learn nothing from prompts whose num_generations responses all have the same score."
    )
    kl_in: Literal["reward", "loss"] = option(
        "reward", "Where kl_coef times the KL goes: 'reward', or 'loss' (which wants kl_estimator='k3')."
    )
    ref_reset_steps: int | None = option(
        None, "Make the reference what the policy is, each time so many steps are done; None: never."
    )
    normalize_rewards: bool = option(
        False, "Scale scores to zero mean and unit variance over the run so far."
    )
    reward_clip: float | None = option(None, "Bound on a score's size, after normalize_rewards.")
    overlong_buffer: int | None = option(
        None, "Last tokens of response_length in which overlong_penalty grows from zero to its whole (DAPO)."
    )
    overlong_penalty: float = option(1.0, "Taken from the score of a response of response_length tokens.")
    ptx_coef: float = option(0.0, "Weight of the language model's loss on pretrain_dataset.")
    reward_weights: list[float] | None = option(
        None, "Weights of the rewards when reward_model is a list; all 1 if None."
    )
    reward_position: Literal["after_end", "end"] = option(
        "after_end",
        "Where a score lands: 'end' on the response's last token; 'after_end' one later if there is room, as in TRL.",
    )
    adaptive_kl_target: float | None = option(
        None, "KL per sequence (nats) that kl_coef is steered to; None: fixed."
    )
    adaptive_kl_horizon: int = option(10_000, "Episodes over which the steering acts.")
    cliprange_high: float | None = option(None, "Upper clip distance of the ratio; cliprange if None.")
    dual_clip: float | None = option(None, "Bounds the loss of a token with negative advantage; more than 1.")
    log_ratio_clamp: float | None = option(
        None, "Bound on the log-ratio, beyond which a token has no gradient."
    )
    entropy_coef: float = option(0.0, "Weight of an entropy bonus.")
    detach_value: bool = option(True, "On a shared base, keep the value loss from the policy's weights.")
    rollout_correction_cap: float | None = option(
        None,
        "Truncated importance weights where the generator's log-probabilities differ from the trainer's, at most this.",
    )
    rollout_weights: Literal["int8"] | None = option(
        None,
        "'int8' samples with copies of the policy's weights in 8 bits, adapters merged in, made for each rollout and "
        "let go after it; rollout_correction_cap is then 2.0 unless it is given. None: the weights themselves.",
    )
    accelerate: bool = option(
        True,
        "Make the Hugging Face models among policy, reference, critic and rewards of fastrlhf's operations, in place.",
    )
    packing: bool | None = option(
        None,
        "Compute hidden states on real tokens only, several sequences in one row; None: where the attention is ours.",
    )
    trainable_layers: int | None = option(
        None,
        "Train so many of the top layers alone (of the policy, and of a critic with a base of its own); LoRA goes on "
        "these alone. Embeddings, head and final norm are frozen too. None: what requires a gradient.",
    )
    frozen_states_bytes: str = option(
        "512MB",
        "How much of what frozen bottom layers give is kept for a rollout's other passes; rows beyond are recomputed. "
        "As much again may be kept of the reference's states where a reward model shares them.",
    )
    packed_weight_bytes: str = option(
        "0",
        "How much of the weights stays packed for the CPU's fastest matrix products, in copies, in this process; "
        "products with the others read them as they lie, up to a tenth slower.",
    )
    reuse_rollout_logprobs: bool | None = option(
        None,
        "Take the generator's log-probabilities for the old ones instead of evaluating the policy again; None: where "
        "both compute in float32 and no rollout_correction_cap compares them (they then agree to about 1e-5).",
    )
    try_longest_first: bool = option(
        True,
        "Before the first step, take the longest prompt and response_length through all phases once, to find out early "
        "whether they fit; on devices with memory of their own, without device_memory.",
    )
    padded_averages: bool = option(
        False, "Average approxkl, ratio and policy entropy over padding too, as TRL 1.12's logs do."
    )
    device_memory: str | None = option(
        None,
        "What parameters, gradients and optimizer state of all models may take on the device, such as '6GB'; the rest "
        "moves between host_memory and offload_dir (see fastrlhf.offload). None: all of it stays on the device.",
    )
    host_memory: str | None = option(
        None, "With device_memory: what they may take in the host's memory; None: no limit (on a CPU: none)."
    )
    offload_dir: str | None = option(
        None, "With device_memory: a directory on a fast disk for what fits in neither."
    )
    offload_activations: bool = option(
        False,
        "With device_memory, on a GPU: what a forward keeps for its backward waits in the host's memory (with "
        "gradient_checkpointing the inputs of the layers).",
    )
    keep_last: int | None = option(None, "How many checkpoints stay; the same as save_total_limit.")
    max_skipped_updates: int = option(
        3, "Non-finite updates in a row after which the run stops with a checkpoint."
    )

    def __post_init__(self):
        with settled(self):
            super().__post_init__()
        self._check()
        if self.rollout_weights is not None and self.rollout_correction_cap is None:
            self.rollout_correction_cap = DEFAULT_CORRECTION_CAP

    @property
    def place_model_on_device(self) -> bool:
        """Not transformers' business: the policy may be larger than the device (`HasRoles.place_models`)."""
        return False

    def _check(self) -> None:
        """Refuse what cannot be meant, before any work is done."""
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError("stop_token and stop_token_id exclude each other: set one")
        if self.stop_token not in (None, "eos"):
            raise ValueError(
                f"stop_token is {self.stop_token!r}, expected 'eos' or None (use stop_token_id for others)"
            )
        check_one_of(
            self,
            {
                "kl_estimator": KL_ESTIMATORS,
                "reward_position": ("end", "after_end"),
                "advantage_estimator": ESTIMATORS,
                "kl_in": ("reward", "loss"),
            },
        )
        if self.rollout_weights not in WEIGHTS:
            raise ValueError(f"rollout_weights is {self.rollout_weights!r}, expected 'int8' or None")
        check_common(self)
        at_least = {
            "num_mini_batches": 1,
            "num_ppo_epochs": 1,
            "response_length": 1,
            "local_rollout_forward_batch_size": 1,
            "num_sample_generations": 0,
            "kl_coef": 0,
            "cliprange": 0,
            "cliprange_value": 0,
            "vf_coef": 0,
            "missing_eos_penalty": 0,
            "total_episodes": 1,
            "max_skipped_updates": 1,
            "adaptive_kl_horizon": 1,
            "keep_last": 1,
            "num_generations": 1,
            "ref_reset_steps": 1,
            "overlong_buffer": 1,
            "overlong_penalty": 0,
            "ptx_coef": 0,
            "trainable_layers": 1,
        }
        above = {
            "temperature": 0,
            "reward_clip": 0,
            "dual_clip": 1,
            "log_ratio_clamp": 0,
            "adaptive_kl_target": 0,
            "rollout_correction_cap": 0,
        }
        check_at_least(self, at_least)
        check_above(self, above)
        self._check_advantages()
        if self.ref_reset_steps is not None and self.device_memory is not None:
            raise ValueError(
                "ref_reset_steps and device_memory are set: a reference that may be away cannot be reset"
            )
        if self.rollout_weights is not None and self.device_memory is not None:
            raise ValueError(
                f"rollout_weights is {self.rollout_weights!r}, copies of weights that lie in place, and device_memory "
                "moves them: set one of the two"
            )
        if self.reuse_rollout_logprobs and self.rollout_weights is not None:
            raise ValueError(
                f"rollout_weights is {self.rollout_weights!r}, under which the generator's log-probabilities are not "
                "the policy's, and reuse_rollout_logprobs=True takes them for it: set one of the two"
            )
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number in [0, 1]")

    def _check_advantages(self) -> None:
        alone = self.num_generations == 1
        if alone and (self.skip_flat_groups or self.advantage_estimator in GROUP_ESTIMATORS):
            what = (
                "skip_flat_groups"
                if self.skip_flat_groups
                else f"advantage_estimator={self.advantage_estimator!r}"
            )
            raise ValueError(f"{what} compares responses to one prompt: set num_generations to 2 or more")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_in='loss' with kl_estimator='k1' pulls nowhere (the expectation of its gradient is zero): "
                "use kl_estimator='k3'"
            )
        if self.overlong_buffer is not None and self.overlong_buffer > self.response_length:
            raise ValueError(
                f"overlong_buffer is {self.overlong_buffer}, expected at most response_length={self.response_length}"
            )
