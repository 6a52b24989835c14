"""`fastrlhf ppo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrlhf.commands.options import OptionError
from fastrlhf.commands.parts import MODEL, ON_BAD_ROWS, PEFT, PROMPTS, TOKENIZER, adapter, prompts, require
from fastrlhf.commands.rewards import REWARDS, find_rewards
from fastrlhf.commands.stage import Stage

OPTIONS = {
    "model": f"the policy: {MODEL}",
    "rewards": REWARDS,
    "train_dataset": PROMPTS,
    "eval_dataset": "the same, held out: completions of it are shown during the run",
    "pretrain_dataset": "rows with `text` or `prompt`, for ptx_coef",
    "ref_model": "the reference, a folder or a name; the policy before training if left out",
    "value_model": "a classifier (such as the reward model) to start the critic from; a head on the policy if left out",
    "tokenizer": TOKENIZER,
    "peft": PEFT,
    "on_bad_rows": ON_BAD_ROWS,
}
EXAMPLE = {
    "model": "runs/sft",
    "rewards": "runs/reward",
    "train_dataset": "prompts.jsonl",
    "output_dir": "runs/ppo",
    "learning_rate": 1.0e-5,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "total_episodes": 10000,
    "response_length": 128,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "save_total_limit": 2,
}
# TRL's scripts read these, the trainer does not; here they would be set in vain.
INSTEAD = {"sft_model_path": "model", "reward_model_path": "rewards"}


def _config() -> type:
    from fastrlhf.ppo.config import PPOConfig

    return PPOConfig


def _build(args: Any, options: Mapping[str, Any]) -> Any:
    require(options, OPTIONS, "model", "rewards", "train_dataset")
    for name, instead in INSTEAD.items():
        if getattr(args, name) != type(args).__dataclass_fields__[name].default:
            raise OptionError(f"{name} is for scripts of your own: set {instead}")
    from transformers import AutoModelForCausalLM, set_seed

    from fastrlhf.models.saved import load_saved_tokenizer
    from fastrlhf.ppo import PPOTrainer

    set_seed(args.seed)  # an adapter's weights are drawn
    value_model = options.get("value_model")
    return PPOTrainer(
        args,
        load_saved_tokenizer(options.get("tokenizer") or options["model"], padding_side="left"),
        model=_loaded(options["model"], AutoModelForCausalLM),
        ref_model=_loaded(options.get("ref_model"), AutoModelForCausalLM),
        reward_model=find_rewards(options["rewards"], _classifier),
        train_dataset=prompts(options, "train_dataset"),
        value_model=_classifier(value_model) if value_model else None,
        eval_dataset=prompts(options, "eval_dataset", "test"),
        peft_config=adapter(options.get("peft")),
        pretrain_dataset=_texts(options),
    )


def _loaded(name: str | None, auto_class: Any, **more: Any) -> Any:
    import torch

    from fastrlhf.models.saved import load_saved

    return load_saved(name, auto_class, dtype=torch.float32, **more) if name else None


def _classifier(name: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    return _loaded(name, AutoModelForSequenceClassification, num_labels=1)


def _texts(options: Mapping[str, Any]) -> Any:
    """The rows of `pretrain_dataset`, their text where the trainer looks for it."""
    if not options.get("pretrain_dataset"):
        return None
    from fastrlhf.data.files import load_file

    on_bad_rows = options.get("on_bad_rows") or "stop"
    rows = load_file(options["pretrain_dataset"], on_bad_rows=on_bad_rows)
    return rows.rename_column("text", "prompt") if "text" in rows.column_names else rows


PPO = Stage(
    "ppo", "train a model by proximal policy optimisation against rewards", _config, OPTIONS, EXAMPLE, _build
)
