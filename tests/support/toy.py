"""Toy models and trainers, and what PPO computes with them, written out row by row in float64.

The references here know no padding, no packing, no micro-batches and no kernels: each row is its own forward
of the model's own logits, and autograd does the rest.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fastrlhf import PPOConfig, PPOTrainer
from fastrlhf.ppo import loop
from fastrlhf.ppo.experience import Experience
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.ppo.stats import UpdateStats

VOCABULARY = 24
EOS, PAD, UNK = VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1
WORDS = EOS
# Weights so large that a wrong position, mask or token shows in the first digits.
SPREAD = 0.4


def toy_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... are tokens 0, 1, ...; then <eos>, <pad>, <unk>."""
    vocabulary = {f"w{token}": token for token in range(WORDS)}
    vocabulary |= {"<eos>": EOS, "<pad>": PAD, "<unk>": UNK}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


SHAPES = {
    "llama": (
        LlamaConfig,
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 48,
            "initializer_range": SPREAD,
        },
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    ),
    "gpt2": (
        GPT2Config,
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 48, "initializer_range": SPREAD},
        GPT2LMHeadModel,
        GPT2ForSequenceClassification,
    ),
}


def toy_model(shape: str = "llama", seed: int = 0, *, scorer: bool = False, **options: Any) -> nn.Module:
    """A causal language model, or with `scorer` a one-number classifier, in evaluation mode."""
    config_class, defaults, language_model, classifier = SHAPES[shape]
    special = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    config = config_class(**{**defaults, **special, **({"num_labels": 1} if scorer else {}), **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (classifier if scorer else language_model)(config).eval()


def toy_lora(**options: Any) -> LoraConfig:
    """LoRA on every linear layer of a Llama, with weights that do something from the start."""
    named = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "init_lora_weights": False, **options}
    return LoraConfig(task_type="CAUSAL_LM", **named)


def toy_prompts(rows: int = 8, longest: int = 5) -> Dataset:
    """Prompts of one to `longest` words, the first of them the shortest."""
    random = torch.Generator().manual_seed(5)
    return Dataset.from_dict(
        {
            "input_ids": [
                torch.randint(0, WORDS, (1 + row % longest,), generator=random).tolist()
                for row in range(rows)
            ]
        }
    )


def word_share(prompts: list[str], completions: list[str]) -> list[float]:
    """Reward: the share of words below w8."""
    words = [completion.split() for completion in completions]
    return [sum(int(word[1:]) < 8 for word in some) / max(1, len(some)) for some in words]


def toy_config(folder: Any, **options: Any) -> PPOConfig:
    """One batch of eight prompts, one epoch, no checkpoints."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_ppo_epochs": 1,
        "total_episodes": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "response_length": 6,
        "stop_token": "eos",
        "temperature": 0.8,
        "num_sample_generations": 0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return PPOConfig(**{**defaults, **options})


def toy_trainer(
    folder: Any,
    *,
    model: nn.Module | None = None,
    ref_model: nn.Module | None = None,
    reward_model: Any = word_share,
    value_model: nn.Module | None = None,
    tokenizer: Any = None,
    dataset: Dataset | None = None,
    peft_config: Any = None,
    cls: type[PPOTrainer] = PPOTrainer,
    **options: Any,
) -> PPOTrainer:
    """A trainer of a toy Llama on `word_share`; `options` go to its config. Its value head is not zero."""
    trainer = cls(
        toy_config(folder, **options),
        tokenizer or toy_tokenizer(),
        model or toy_model(),
        ref_model,
        reward_model,
        dataset or toy_prompts(),
        value_model,
        peft_config=peft_config,
    )
    trainer.model.train()
    if value_model is None:
        set_value_head(trainer.model.value_model)
    return trainer


@torch.no_grad()
def set_value_head(head: nn.Module) -> None:
    """Put known weights into a value head, which starts at zero and would hide where it is read."""
    head.score.weight.copy_(torch.linspace(-1, 1, head.score.weight.numel())[None])
    head.score.bias.fill_(0.25)


def toy_rollout(rows: int = 8, width: int = 6, *, left: int = 0) -> Rollout:
    """Ragged prompts and responses, one empty and one of full width; `left` columns of padding more."""
    random = torch.Generator().manual_seed(11)
    prompt_lengths = torch.tensor([1 + row % 5 for row in range(rows)])
    lengths = torch.tensor([(0, width, 1, 3, width - 1, 2)[row % 6] for row in range(rows)])
    columns = int(prompt_lengths.max()) + left
    prompt_mask = torch.arange(columns) >= (columns - prompt_lengths)[:, None]
    prompts = torch.full((rows, columns), PAD)
    prompts[prompt_mask] = torch.randint(0, WORDS, (int(prompt_mask.sum()),), generator=random)
    responses = torch.randint(0, WORDS, (rows, width), generator=random)
    responses[torch.arange(width) >= lengths[:, None]] = PAD
    for row, length in enumerate(lengths.tolist()):
        if 0 < length < width:
            responses[row, length - 1] = EOS
    return Rollout(prompts, prompt_mask, responses, lengths)


def row_tokens(rollout: Rollout, row: int) -> tuple[torch.Tensor, int]:
    """One row's real tokens, `[1, P + R]`, and how many of them are its prompt's."""
    prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]]
    response = rollout.response_ids[row][: rollout.lengths[row]]
    return torch.cat([prompt, response])[None], len(prompt)


def exact(model: nn.Module) -> nn.Module:
    """A copy in float64."""
    return copy.deepcopy(model).double()


def plain_logprobs(model: nn.Module, rollout: Rollout, temperature: float) -> torch.Tensor:
    """`[B, R]`, float64: log-softmax of the model's own logits, each row alone and without padding."""
    out = torch.zeros(rollout.response_ids.shape, dtype=torch.float64)
    model = exact(model)
    for row in range(len(out)):
        with torch.no_grad():
            row_logprobs, _ = _row(model, rollout, row, temperature)
        out[row, : len(row_logprobs)] = row_logprobs
    return out


def plain_values(actor_critic: nn.Module, rollout: Rollout) -> torch.Tensor:
    """`[B, R]`, float64: the critic at each state, the one after the end included where there is room."""
    out = torch.zeros(rollout.response_ids.shape, dtype=torch.float64)
    actor_critic = exact(actor_critic)
    for row in range(len(out)):
        with torch.no_grad():
            states = _row_values(actor_critic, rollout, row)[: out.shape[1]]
        out[row, : len(states)] = states
    return out


def _row(model, rollout, row, temperature):
    ids, prompt = row_tokens(rollout, row)
    logits = model(input_ids=ids).logits[0, prompt - 1 : -1] / temperature
    log_p = torch.log_softmax(logits, dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)
    return log_p.gather(1, ids[0, prompt:, None])[:, 0], entropy


def _row_values(actor_critic, rollout, row):
    ids, prompt = row_tokens(rollout, row)
    if actor_critic.shares_base:
        hidden = actor_critic.policy(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        hidden = hidden.detach() if actor_critic.detach_value else hidden
    else:
        critic = actor_critic.value_model
        hidden = getattr(critic, critic.base_model_prefix)(input_ids=ids).last_hidden_state
    score = actor_critic.value_model.score
    values = hidden[0] @ score.weight[0]
    values = values if score.bias is None else values + score.bias
    return values[prompt - 1 :]


def plain_update(trainer: PPOTrainer, experience: Experience, rows: torch.Tensor):
    """Loss of a minibatch and its gradients by name, from the equations, in float64."""
    args, rollout, model = trainer.args, experience.rollout, exact(trainer.model)
    model.zero_grad()
    policy_sum = entropy_sum = value_sum = torch.zeros((), dtype=torch.float64)
    tokens = states = 0
    for row in rows.tolist():
        n = int(rollout.lengths[row])
        logprobs, entropy = _row(model.policy, rollout, row, args.temperature)
        log_ratio = logprobs - experience.logprobs[row, :n].double()
        if args.log_ratio_clamp is not None:
            log_ratio = log_ratio.clamp(-args.log_ratio_clamp, args.log_ratio_clamp)
        ratio, advantage = log_ratio.exp(), experience.advantages[row, :n].double()
        high = args.cliprange if args.cliprange_high is None else args.cliprange_high
        objective = torch.min(advantage * ratio, advantage * ratio.clamp(1 - args.cliprange, 1 + high))
        if args.dual_clip is not None:
            objective = torch.where(
                advantage < 0, torch.max(objective, args.dual_clip * advantage), objective
            )
        if experience.weights is not None:
            objective = experience.weights[row, :n].double() * objective
        policy_sum = policy_sum - objective.sum()
        entropy_sum = entropy_sum + entropy.sum()
        tokens += n

        m = min(n + 1, rollout.response_ids.shape[1])
        values, old = _row_values(model, rollout, row)[:m], experience.values[row, :m].double()
        target = experience.returns[row, :m].double()
        clipped = old + (values - old).clamp(-args.cliprange_value, args.cliprange_value)
        value_sum = value_sum + 0.5 * torch.max((values - target) ** 2, (clipped - target) ** 2).sum()
        states += m
    loss = (policy_sum - args.entropy_coef * entropy_sum) / tokens + args.vf_coef * value_sum / states
    loss.backward()
    return loss.detach(), _gradients(model)


def taken_update(trainer: PPOTrainer, experience: Experience, rows: torch.Tensor):
    """Loss of a minibatch and its gradients by name as the trainer computes them; no weight changes."""
    step, stats = trainer.optimizer_step, UpdateStats()
    taken = []
    trainer.optimizer_step = lambda loss: taken.append((loss, _gradients(trainer.model))) or (0.0, False)
    try:
        loop.update(trainer, experience, rows, stats)
    finally:
        trainer.optimizer_step = step
    return taken[0]


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def toy_experience(trainer: PPOTrainer, rollout: Rollout, *, off_policy: float = 0.0) -> Experience:
    """The trainer's experience of a rollout with known scores; `off_policy` moves old logprobs and values."""
    scores = torch.linspace(-1, 2, len(rollout.lengths))
    experience = loop.evaluate(trainer, rollout, scores)
    random = torch.Generator().manual_seed(3)
    for name in ("logprobs", "values"):
        tensor = getattr(experience, name)
        noise = off_policy * torch.randn(tensor.shape, generator=random)
        setattr(experience, name, torch.where(tensor != 0, tensor + noise, 0.0))
    return experience


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance):
    """Every parameter's gradient, relative to the largest entry of all."""
    assert actual.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in actual.items():
        difference = float((gradient.double() - expected[name].double()).abs().max())
        assert difference <= tolerance["rtol"] * scale, (name, difference, scale)
