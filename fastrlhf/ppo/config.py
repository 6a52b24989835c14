"""Every option of a PPO run: TRL 1.12's names and defaults, then what fastrlhf adds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from fastrlhf.generation.run import WEIGHTS
from fastrlhf.kernels.kl import KL_ESTIMATORS
from fastrlhf.memory.sizes import parse_size

# Of the off-policy correction where rollouts compute with rounded weights; the source's own choice (see `Experience`).
DEFAULT_CORRECTION_CAP = 2.0


def _option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class PPOConfig(TrainingArguments):
    """Arguments of `PPOTrainer`, on top of `transformers.TrainingArguments`.

    The first block has the names, types and defaults of `trl==1.12.0`'s `trl.experimental.ppo.PPOConfig`; the second is
    fastrlhf's own and leaves PPO as it is by default. `help` of each field says what it does.

    Raises:
        ValueError: a value outside its range; the message names the field, its value and what was expected.
    """

    # As in TrainingArguments, with TRL's defaults
    learning_rate: float = _option(3e-6, "The initial learning rate of the optimizer.")
    logging_steps: float = _option(10, "Kept for TRL's scripts: PPO logs every step.")
    gradient_checkpointing: bool = _option(True, "Compute activations again in the backward to save memory.")
    bf16: bool | None = _option(
        None, "bfloat16 autocast on a GPU; True unless fp16. A CPU computes in float32."
    )

    # As in TRL
    dataset_num_proc: int | None = _option(
        None, "Kept for TRL's scripts: prompts are tokenised in this process."
    )
    num_mini_batches: int = _option(1, "Optimizer updates per epoch: minibatches that a batch is split into.")
    total_episodes: int | None = _option(None, "Prompts to see; num_train_epochs of the dataset if None.")
    local_rollout_forward_batch_size: int = _option(
        64, "Rows per forward pass without gradient, and per generation."
    )
    num_sample_generations: int = _option(
        10, "How often completions of eval_dataset are shown during a run; 0: never."
    )
    response_length: int = _option(53, "Longest response, in tokens.")
    stop_token: Literal["eos"] | None = _option(None, "'eos' ends a response at the tokenizer's end token.")
    stop_token_id: int | None = _option(None, "Token that ends a response; excludes stop_token.")
    temperature: float = _option(0.7, "Divides the logits in sampling and in every log-probability.")
    missing_eos_penalty: float | None = _option(
        None, "Taken from the score of a response without an end token."
    )
    sft_model_path: str = _option("EleutherAI/pythia-160m", "Path of the policy, for scripts.")
    world_size: int | None = _option(None, "Number of processes; set by the trainer.")
    num_total_batches: int | None = _option(None, "Number of steps; set by the trainer.")
    micro_batch_size: int | None = _option(
        None, "per_device_train_batch_size x world_size; set by the trainer."
    )
    local_batch_size: int | None = _option(None, "Rows of a step in one process; set by the trainer.")
    batch_size: int | None = _option(None, "Rows of a step over all processes; set by the trainer.")
    local_mini_batch_size: int | None = _option(
        None, "Rows of a minibatch in one process; set by the trainer."
    )
    mini_batch_size: int | None = _option(None, "Rows of a minibatch over all processes; set by the trainer.")
    push_to_hub: bool = _option(False, "Push the model to the Hub when it is saved.")
    reward_model_path: str = _option("EleutherAI/pythia-160m", "Path of the reward model, for scripts.")
    model_adapter_name: str | None = _option(None, "PEFT adapter that is trained; 'default' if None.")
    ref_adapter_name: str | None = _option(None, "PEFT adapter that is the reference; the bare base if None.")
    num_ppo_epochs: int = _option(4, "Passes over each batch of experience.")
    whiten_rewards: bool = _option(False, "Scale rewards to unit variance, keeping their mean.")
    kl_coef: float = _option(0.05, "Weight of the KL penalty in the reward.")
    kl_estimator: Literal["k1", "k3"] = _option(
        "k1", "Estimator of the KL in the reward (see kernels.kl_estimate)."
    )
    cliprange: float = _option(0.2, "Distance from one at which the probability ratio is clipped.")
    vf_coef: float = _option(0.1, "Weight of the value loss.")
    cliprange_value: float = _option(0.2, "Distance from the old value at which the value is clipped.")
    gamma: float = _option(1.0, "Discount per token.")
    lam: float = _option(0.95, "Lambda of generalised advantage estimation.")
    ds3_gather_for_generation: bool = _option(True, "Kept for TRL's scripts: DeepSpeed is not supported.")

    # fastrlhf's own
    reward_weights: list[float] | None = _option(
        None, "Weights of the rewards when reward_model is a list; all 1 if None."
    )
    reward_position: Literal["after_end", "end"] = _option(
        "after_end",
        "Where a score lands: 'end' on the response's last token; 'after_end' one later if there is room, as in TRL.",
    )
    adaptive_kl_target: float | None = _option(
        None, "KL per sequence (nats) that kl_coef is steered to; None: fixed."
    )
    adaptive_kl_horizon: int = _option(10_000, "Episodes over which the steering acts.")
    cliprange_high: float | None = _option(None, "Upper clip distance of the ratio; cliprange if None.")
    dual_clip: float | None = _option(
        None, "Bounds the loss of a token with negative advantage; more than 1."
    )
    log_ratio_clamp: float | None = _option(
        None, "Bound on the log-ratio, beyond which a token has no gradient."
    )
    entropy_coef: float = _option(0.0, "Weight of an entropy bonus.")
    detach_value: bool = _option(True, "On a shared base, keep the value loss from the policy's weights.")
    rollout_correction_cap: float | None = _option(
        None,
        "Truncated importance weights where the generator's log-probabilities differ from the trainer's, at most this.",
    )
    rollout_weights: Literal["int8"] | None = _option(
        None,
        "'int8' samples with copies of the policy's weights in 8 bits, adapters merged in, made for each rollout and "
        "let go after it; rollout_correction_cap is then 2.0 unless it is given. None: the weights themselves.",
    )
    accelerate: bool = _option(
        True,
        "Make the Hugging Face models among policy, reference, critic and rewards of fastrlhf's operations, in place.",
    )
    packing: bool | None = _option(
        None,
        "Compute hidden states on real tokens only, several sequences in one row; None: where the attention is ours.",
    )
    trainable_layers: int | None = _option(
        None,
        "Train so many of the top layers alone (of the policy, and of a critic with a base of its own); LoRA goes on "
        "these alone. Embeddings, head and final norm are frozen too. None: what requires a gradient.",
    )
    frozen_states_bytes: str = _option(
        "512MB",
        "How much of what frozen bottom layers give is kept for a rollout's other passes; rows beyond are recomputed. "
        "As much again may be kept of the reference's states where a reward model shares them.",
    )
    packed_weight_bytes: str = _option(
        "0",
        "How much of the weights stays packed for the CPU's fastest matrix products, in copies, in this process; "
        "products with the others read them as they lie, up to a tenth slower.",
    )
    reuse_rollout_logprobs: bool | None = _option(
        None,
        "Take the generator's log-probabilities for the old ones instead of evaluating the policy again; None: where "
        "both compute in float32 and no rollout_correction_cap compares them (they then agree to about 1e-5).",
    )
    try_longest_first: bool = _option(
        True,
        "Before the first step, take the longest prompt and response_length through all phases once, to find out early "
        "whether they fit; on devices with memory of their own, without device_memory.",
    )
    padded_averages: bool = _option(
        False, "Average approxkl, ratio and policy entropy over padding too, as TRL 1.12's logs do."
    )
    device_memory: str | None = _option(
        None,
        "What parameters, gradients and optimizer state of all models may take on the device, such as '6GB'; the rest "
        "moves between host_memory and offload_dir (see fastrlhf.offload). None: all of it stays on the device.",
    )
    host_memory: str | None = _option(
        None, "With device_memory: what they may take in the host's memory; None: no limit (on a CPU: none)."
    )
    offload_dir: str | None = _option(
        None, "With device_memory: a directory on a fast disk for what fits in neither."
    )
    offload_activations: bool = _option(
        False,
        "With device_memory, on a GPU: what a forward keeps for its backward waits in the host's memory (with "
        "gradient_checkpointing the inputs of the layers).",
    )
    keep_last: int | None = _option(None, "How many checkpoints stay; the same as save_total_limit.")
    max_skipped_updates: int = _option(
        3, "Non-finite updates in a row after which the run stops with a checkpoint."
    )

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.fp16
        if self.keep_last is not None:
            if self.save_total_limit not in (None, self.keep_last):
                raise ValueError(
                    f"keep_last is {self.keep_last} and save_total_limit {self.save_total_limit}: set one of the two"
                )
            self.save_total_limit = self.keep_last
        with (
            warnings.catch_warnings()
        ):  # the name is TRL's and ours to keep; transformers 5.23 has renamed its own
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
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
        if self.kl_estimator not in KL_ESTIMATORS:
            raise ValueError(
                f"kl_estimator is {self.kl_estimator!r}, expected one of {', '.join(KL_ESTIMATORS)}"
            )
        if self.reward_position not in ("end", "after_end"):
            raise ValueError(f"reward_position is {self.reward_position!r}, expected 'end' or 'after_end'")
        if self.rollout_weights not in WEIGHTS:
            raise ValueError(f"rollout_weights is {self.rollout_weights!r}, expected 'int8' or None")
        if self.fp16:
            raise ValueError(
                "fp16=True needs loss scaling, which is not supported: use bf16=True, or neither"
            )
        for name in ("device_memory", "host_memory"):
            if getattr(self, name) is not None:
                parse_size(name, getattr(self, name))
        if self.device_memory is None and (self.host_memory or self.offload_dir):
            raise ValueError(
                "host_memory and offload_dir are for what leaves the device: set device_memory too"
            )
        if self.device_memory is None and self.offload_activations:
            raise ValueError("offload_activations=True needs the memory manager: set device_memory too")
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
            "trainable_layers": 1,
        }
        for name, low in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"{name} is {value}, expected at least {low}")
        above = {
            "temperature": 0,
            "dual_clip": 1,
            "log_ratio_clamp": 0,
            "adaptive_kl_target": 0,
            "rollout_correction_cap": 0,
        }
        for name, low in above.items():
            value = getattr(self, name)
            if value is not None and not value > low:
                raise ValueError(f"{name} is {value}, expected more than {low}")
        for name in ("frozen_states_bytes", "packed_weight_bytes"):
            parse_size(name, getattr(self, name))
        if self.trainable_layers is not None and (self.gradient_checkpointing_kwargs or {}).get(
            "use_reentrant"
        ):
            raise ValueError(
                "gradient_checkpointing_kwargs asks for use_reentrant, with which no gradient comes where a layer's "
                "input has none: leave it out with trainable_layers"
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
        if self.reuse_rollout_logprobs and self.rollout_correction_cap is not None:
            raise ValueError(
                "rollout_correction_cap compares the trainer's log-probabilities with the generator's, and "
                "reuse_rollout_logprobs=True leaves nothing to compare: set one of the two"
            )
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number in [0, 1]")
