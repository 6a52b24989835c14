"""TRL's and transformers' options that are not supported: an error that says why, never another computation."""

from __future__ import annotations

import dataclasses
from typing import Any

_VLLM = "rollouts run on fastrlhf's own generator, not on vLLM"
_BATCHING = "the generator batches continuously over a paged cache by itself"
_TRAINERS = "this trainer has a loop of its own, which does not look at it"
_EVALUATION = "evaluation generates and scores completions, and predicts nothing else"
_PROCESSES = "more than one process is not supported yet"
_LOADER = "the prompts' loader does not look at it"
_HUB = "checkpoints stay in output_dir, and save_model pushes the model alone"

# by field: why any other value than the default is refused
REFUSED: dict[str, str] = {
    # TRL's
    **dict.fromkeys(
        (
            "use_vllm",
            "vllm_mode",
            "vllm_model_impl",
            "vllm_enable_sleep_mode",
            "vllm_structured_outputs_regex",
            "vllm_server_base_url",
            "vllm_server_host",
            "vllm_server_port",
            "vllm_server_timeout",
            "vllm_group_port",
            "vllm_gpu_memory_utilization",
            "vllm_max_model_length",
            "vllm_tensor_parallel_size",
            "vllm_importance_sampling_mode",
            "vllm_importance_sampling_clip_max",
            "vllm_importance_sampling_clip_min",
            "vllm_importance_sampling_cap",
        ),
        _VLLM,
    ),
    **dict.fromkeys(
        (
            "cache_implementation",
            "use_transformers_continuous_batching",
            "transformers_continuous_batching_config",
            "use_transformers_paged",
        ),
        _BATCHING,
    ),
    "ds3_gather_for_generation": "it is DeepSpeed's, which is not supported",
    "log_multimodal": "there are no images to log",
    "vllm_importance_sampling_correction": f"{_VLLM} (see rollout_correction_cap)",
    "router_aux_loss_coef": "the load-balancing loss of mixtures of experts is not computed",
    "cast_lm_head_to_fp32": "log-probabilities are computed in float32 from the head's own weight",
    "pad_to_multiple_of": "nothing is computed on padding",
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), "loss_type='sapo' is not there"),
    **dict.fromkeys(
        ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
        "loss_type='vespo' is not there",
    ),
    "max_tool_calling_iterations": "completions call no tools",
    "log_completions_hub_repo": "completions are written to output_dir/completions alone",
    # transformers'
    **dict.fromkeys(
        (
            "label_smoothing_factor",
            "torch_compile",
            "use_liger_kernel",
            "liger_kernel_config",
            "neftune_noise_alpha",
            "auto_find_batch_size",
            "full_determinism",
            "torch_empty_cache_steps",
            "ignore_data_skip",
            "debug",
            "optim_target_modules",
            "train_sampling_strategy",
        ),
        _TRAINERS,
    ),
    **dict.fromkeys(
        (
            "bf16_full_eval",
            "fp16_full_eval",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
            "load_best_model_at_end",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(("fsdp", "deepspeed", "parallelism_config"), _PROCESSES),
    **dict.fromkeys(
        (
            "dataloader_drop_last",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
        ),
        _LOADER,
    ),
    **dict.fromkeys(
        ("save_only_model", "enable_jit_checkpoint"), "a checkpoint holds all that a run goes on from"
    ),
    "hub_strategy": _HUB,
}

# what transformers makes of a default, and another way to say no
_ALSO: dict[str, tuple] = {"debug": ([],), "pad_to_multiple_of": (None,), "router_aux_loss_coef": (0.0,)}


def check_refused(args: Any) -> None:
    """Raise ValueError for the first refused field of a configuration that is not at its default."""
    fields = {item.name: item for item in dataclasses.fields(args)}
    for name, reason in REFUSED.items():
        if name not in fields:
            continue
        value, item = getattr(args, name), fields[name]
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()
        if value != default and value not in _ALSO.get(name, ()):
            raise ValueError(f"{name} is {value!r}, which is not supported: {reason}")
