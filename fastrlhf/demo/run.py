"""The demo: PPO on SmolLM2-135M, reviews' first words as prompts, VADER as reward, and a judge that it never sees."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from fastrlhf.data.order import PromptOrder
from fastrlhf.demo.console import TrainingDisplay
from fastrlhf.demo.judge import Judge
from fastrlhf.demo.model import load_policy
from fastrlhf.demo.prompts import review_prompts
from fastrlhf.demo.quiet import quiet_loading
from fastrlhf.demo.reward import vader_reward
from fastrlhf.demo.settings import Settings
from fastrlhf.generation.batches import generate
from fastrlhf.memory.resident import peak_resident_mb
from fastrlhf.ppo import PPOConfig, PPOTrainer
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.report.callback import JsonlCallback
from fastrlhf.report.metrics import read_metrics
from fastrlhf.report.page import write_report

LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SAMPLES_SHOWN = 6


def run_demo(
    out: Path, *, steps: int | None, seed: int, device: str, settings: Settings | None = None
) -> dict[str, Any]:
    """Train, judge before and after, and write metrics, report and checkpoint to `out`.

    Args:
        out: the run's directory; an earlier run's metrics and summary in it are replaced.
        steps: PPO steps, or None for the settings' own.
        seed: of prompts, sampling and initial weights.
        device: "auto", "cpu" or "cuda".

    Returns:
        The summary that `out/summary.json` holds.

    Raises:
        SystemExit: a signal ended the run; checkpoint and report hold what was done.
    """
    began = time.perf_counter()
    settings = settings or Settings()
    settings = settings if steps is None else replace(settings, steps=steps)
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)
    torch.manual_seed(seed)
    model, tokenizer = load_policy()
    judge = Judge()
    trained = review_prompts(
        settings.steps * settings.prompts_per_step, seed=seed, words=settings.prompt_words
    )
    held_out = review_prompts(settings.judged, seed=seed, words=settings.prompt_words, split="test")

    with TrainingDisplay(settings.steps, title="PPO") as display:
        trainer = build_trainer(out, settings, seed, device, model, tokenizer, trained, judge)
        trainer.phase_listeners.append(display.phase)
        trainer.add_callback(_Follow(display))

        display.note(f"Completing {settings.judged} held-out prompts and the last quarter's before training")
        display.phase("rollout")
        last_prompts = _prompts_of_steps(trained, settings, seed)
        baseline = mean(vader_reward(last_prompts, complete(trainer, last_prompts, settings, seed)))
        before = complete(trainer, held_out, settings, seed)
        try:
            with quiet_loading():
                trainer.train()
        except SystemExit:
            page = write_report(out)
            display.note(f"Stopped by a signal; {page} shows the steps until then")
            raise
        display.phase("rollout")
        after = complete(trainer, held_out, settings, seed)

    samples = _samples(held_out, before, after, judge)
    rewards = [row["objective/scores"] for row in read_metrics(out / "metrics.jsonl")]
    summary = {
        "title": "PPO on SmolLM2-135M-Instruct: positive movie reviews",
        "command": " ".join(["fastrlhf", *sys.argv[1:]]),
        "seed": seed,
        "device": str(trainer.args.device),
        "versions": {name: version(name) for name in ("fastrlhf", "torch", "transformers", "peft")},
        "config": asdict(settings),
        "before": {
            "reward": baseline,
            "judge": _positive_rate(samples, "judge_before"),
            "held_out_reward": mean(sample["reward_before"] for sample in samples),
        },
        "after": {
            "reward": mean(rewards[settings.last_quarter()]),
            "judge": _positive_rate(samples, "judge_after"),
            "held_out_reward": mean(sample["reward_after"] for sample in samples),
        },
        "reward_last_quarter": mean(rewards[settings.last_quarter()]),
        "kl_final": _final_kl(out, settings),
        "kl_limit": settings.kl_limit,
        "tokens_per_second": mean(row["tokens_per_second"] for row in read_metrics(out / "metrics.jsonl")),
        "samples": samples,
        "wall_s": time.perf_counter() - began,
        "peak_rss_mb": peak_resident_mb(),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    write_report(out)
    display.samples_table(samples[:SAMPLES_SHOWN])
    return summary


def build_trainer(
    out: Path,
    settings: Settings,
    seed: int,
    device: str,
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    judge: Judge,
) -> PPOTrainer:
    """The trainer of the demo: LoRA on one frozen base, on which policy, reference and critic all run."""
    args = PPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.prompts_per_step // settings.micro_batch,
        num_mini_batches=settings.minibatches,
        num_ppo_epochs=settings.epochs,
        total_episodes=settings.steps * settings.prompts_per_step,
        response_length=settings.response_length,
        stop_token="eos",
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        kl_coef=settings.kl_coef,
        adaptive_kl_target=settings.kl_target,
        adaptive_kl_horizon=settings.kl_horizon,
        vf_coef=settings.vf_coef,
        gradient_checkpointing=False,
        seed=seed,
        bf16=device != "cpu" and torch.cuda.is_available(),
        use_cpu=device == "cpu",
        save_strategy="steps",
        save_steps=max(1, settings.steps),
        keep_last=1,
        num_sample_generations=0,
        report_to=["tensorboard"],
        disable_tqdm=True,
    )
    layers = model.config.num_hidden_layers
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(LORA_LAYERS),
        layers_to_transform=list(range(layers - settings.lora_top_layers, layers)),
        task_type="CAUSAL_LM",
    )
    dataset = Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]})
    trainer = JudgedTrainer(
        args,
        tokenizer,
        model,
        None,
        vader_reward,
        dataset,
        None,
        callbacks=[JsonlCallback(out / "metrics.jsonl")],
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.judge = judge
    return trainer


class JudgedTrainer(PPOTrainer):
    """PPO whose logs also hold how often the judge, which is never the reward, finds the rollout positive."""

    judge: Judge

    def extra_metrics(self, rollout: Rollout) -> dict[str, float]:
        probabilities = self.judge.positive_probability(_texts(*self.scorer.decode(rollout)))
        return {**super().extra_metrics(rollout), "judge/positive_rate": mean(p > 0.5 for p in probabilities)}


def complete(trainer: PPOTrainer, prompts: list[str], settings: Settings, seed: int) -> list[str]:
    """One sampled completion of each prompt. A seed draws the same random numbers for a prompt before and after."""
    tokenizer, completions = trainer.processing_class, []
    trainer.model.eval()
    for start in range(0, len(prompts), 2 * settings.prompts_per_step):
        some = prompts[start : start + 2 * settings.prompts_per_step]
        batch = tokenizer(some, padding=True, padding_side="left", return_tensors="pt").to(
            trainer.args.device
        )
        with trainer.autocast():
            tokens = generate(
                trainer.policy_model,
                batch["input_ids"],
                batch["attention_mask"].bool(),
                max_new_tokens=settings.response_length,
                pad_token_id=trainer.pad_token_id,
                stop_token_ids=trainer.stop_token_ids,
                temperature=settings.temperature,
                seed=seed + 1,
                first_row_id=start,
            ).tokens
        completions += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return completions


class _Follow(TrainerCallback):
    """Shows each finished step on the display."""

    def __init__(self, display: TrainingDisplay):
        self.display = display

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "objective/scores" in logs:
            self.display.step(state.global_step, logs)


def _prompts_of_steps(prompts: list[str], settings: Settings, seed: int) -> list[str]:
    """The prompts that the last quarter of the steps will see."""
    order = iter(PromptOrder(len(prompts), settings.prompts_per_step, seed))
    batches = [next(order) for _ in range(settings.steps)]
    return [prompts[row] for batch in batches[settings.last_quarter()] for row in batch]


def _texts(prompts: list[str], completions: list[str]) -> list[str]:
    return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


def _samples(prompts: list[str], before: list[str], after: list[str], judge: Judge) -> list[dict[str, Any]]:
    columns = {
        "prompt": prompts,
        "before": before,
        "after": after,
        "reward_before": vader_reward(prompts, before),
        "reward_after": vader_reward(prompts, after),
        "judge_before": judge.positive_probability(_texts(prompts, before)),
        "judge_after": judge.positive_probability(_texts(prompts, after)),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _positive_rate(samples: list[dict[str, Any]], key: str) -> float:
    return mean(sample[key] > 0.5 for sample in samples)


def _final_kl(out: Path, settings: Settings) -> float:
    """Mean KL per sequence over the last quarter of the steps: one batch of 16 alone is noisy."""
    return mean(row["objective/kl"] for row in read_metrics(out / "metrics.jsonl")[settings.last_quarter()])
