"""Every field of both configurations changes what a run does, or is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas
import pytest
import torch
from datasets import Dataset

from fastrlhf.grpo.refused import REFUSED
from fastrlhf.kernels import packed
from fastrlhf.models.backbone import is_accelerated
from tests.support.groups import SIDES, group_config, group_rows, group_trainer, small_words
from tests.support.runs import metrics, same, snapshot
from tests.support.tiny import tiny_llama, tiny_llama_classifier, tiny_tokenizer

TWICE = {"num_iterations": 2, "max_steps": 4, "learning_rate": 3e-2}
KL = {"beta": 0.1}
STEERED = {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 4.0}
SYNCED = {**KL, "sync_ref_model": True, "ref_model_sync_steps": 1}
TWO = {"reward_funcs": "two"}
HALVES = {"per_device_train_batch_size": 4}
SAVES = {"save_strategy": "steps", "save_steps": 1}
HELD_OUT = {"eval_dataset": "held out"}
EVALUATES = {**HELD_OUT, "eval_strategy": "steps", "eval_steps": 2}
SHOWS = {"log_completions": True}

# field: another value than the default (or than that of `group_config`), and the options that it needs to matter
BOTH: dict[str, tuple[Any, dict[str, Any]]] = {
    "learning_rate": (1e-3, {}),
    "logging_steps": (2, {}),
    "num_generations": (2, {}),
    "num_generations_eval": (2, EVALUATES),
    "max_completion_length": (3, {}),
    "shuffle_dataset": (False, {}),
    "generation_batch_size": (16, {}),
    "steps_per_generation": (2, {}),
    "temperature": (0.5, {}),
    "top_p": (0.3, {}),
    "top_k": (2, {}),
    "min_p": (0.9, {}),
    "generation_kwargs": ({"top_k": 2}, {}),
    "repetition_penalty": (3.0, {}),
    "beta": (0.5, {}),
    "num_iterations": (2, {}),
    "epsilon": (1e-3, TWICE),
    "epsilon_high": (1e-3, TWICE),
    "reward_weights": ([1.0, 3.0], TWO),
    "mask_truncated_completions": (True, {}),
    "sync_ref_model": (True, {**KL, "ref_model_sync_steps": 1}),
    "ref_model_mixup_alpha": (0.1, SYNCED),
    "ref_model_sync_steps": (2, SYNCED),
    "skip_flat_groups": (True, {"reward_funcs": "flat"}),
    "rollout_correction_cap": (1e-3, {"top_k": 3}),
    "trainable_layers": (1, {}),
    # transformers'
    "per_device_train_batch_size": (16, {}),
    "gradient_accumulation_steps": (2, {}),
    "num_train_epochs": (1.0, {"max_steps": -1}),
    "max_steps": (2, {}),
    "lr_scheduler_type": ("linear", {}),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_type": "cosine_with_restarts"}),
    "warmup_steps": (3, {"lr_scheduler_type": "linear"}),
    "optim": ("sgd", {}),
    "optim_args": ("momentum=0.9", {"optim": "sgd"}),
    "weight_decay": (0.5, {}),
    "adam_beta1": (0.1, {}),
    "adam_beta2": (0.1, {}),
    "adam_epsilon": (1.0, {}),
    "max_grad_norm": (1e-3, {"optim": "sgd"}),
    "logging_strategy": ("no", {}),
    "logging_first_step": (True, {"logging_steps": 3}),
    "eval_strategy": ("steps", {**HELD_OUT, "eval_steps": 2}),
    "eval_steps": (3, EVALUATES),
    "eval_delay": (3, EVALUATES),
    "per_device_eval_batch_size": (16, EVALUATES),
    "seed": (8, {}),
    "data_seed": (8, {}),
    "save_strategy": ("steps", {"save_steps": 2}),
    "save_steps": (2, SAVES),
    "save_total_limit": (1, SAVES),
    "keep_last": (1, SAVES),
}
OF: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "grpo": {
        "delta": (1.21, {**TWICE, "learning_rate": 0.3}),
        "importance_sampling_level": ("sequence", TWICE),
        "multi_objective_aggregation": ("normalize_then_sum", TWO),
        "scale_rewards": ("none", {}),
        "loss_type": ("grpo", {}),
        "top_entropy_quantile": (0.5, {}),
        "entropy_coef": (0.5, {}),
        "use_adaptive_entropy": (True, {"entropy_target": 4.0}),
        "entropy_coef_min": (0.08, {**STEERED, "entropy_coef_delta": 0.1, "entropy_target": 3.0}),
        "entropy_coef_max": (0.1, STEERED),
        "entropy_coef_delta": (0.5, STEERED),
        "entropy_target": (4.0, STEERED),
        "off_policy_mask_threshold": (1e-6, TWICE),
        "use_bias_correction_kl": (False, {**TWICE, **KL}),
    },
    "rloo": {
        "normalize_advantages": (True, {}),
        "reward_clip_range": ((0.4, 0.5), {}),
    },
}
# looked at one by one below
APART = {
    "bf16",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "remove_unused_columns",
    "model_init_kwargs",
    "trust_remote_code",
    "disable_dropout",
    "chat_template_kwargs",
    "log_completions",
    "num_completions_to_print",
    "log_unique_prompts",
    "local_rollout_forward_batch_size",
    "reuse_rollout_logprobs",
    "accelerate",
    "packing",
    "frozen_states_bytes",
    "packed_weight_bytes",
    "max_skipped_updates",
    "fp16",
    "device_memory",
    "host_memory",
    "offload_dir",
    "offload_activations",
}
# where files, logs and processes go: transformers' own business, which its tests are of
TRANSFORMERS = {
    "output_dir", "average_tokens_across_devices", "tf32", "activation_checkpointing",
    "activation_checkpointing_kwargs", "torch_compile_backend", "torch_compile_mode", "use_cache", "log_on_each_node",
    "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm",
    "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "prediction_loss_only", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "save_on_each_node",
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_always_push", "hub_revision",
    "metric_for_best_model", "greater_is_better", "restore_callback_states_from_checkpoint", "use_cpu",
    "accelerator_config", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_in_order", "label_names",
    "length_column_name", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp_config", "skip_memory_metrics", "do_train", "do_eval",
    "do_predict", "resume_from_checkpoint", "local_rank",
}  # fmt: skip
ANOTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5, str: lambda v: v + "x"}
ANOTHER_OF_THESE = {"pad_to_multiple_of": 8, "hub_strategy": "end"}


def by_number(number, completions, **_):
    return [float((column + len(text)) % 5) for column, text in zip(number, completions, strict=True)]


def flat_for_some(number, completions, **_):
    return [float(len(text)) if column % 2 else 1.0 for column, text in zip(number, completions, strict=True)]


NAMED = {
    "two": [small_words, by_number],
    "flat": flat_for_some,
    "held out": group_rows(3),
}


def outcome(kind, folder, **options):
    """What a run leaves: its log, the weights and the names of its checkpoints."""
    options = {
        name: NAMED.get(value, value) if isinstance(value, str) else value for name, value in options.items()
    }
    trainer = group_trainer(kind, folder, **options)
    trainer.train()
    log = [
        {n: v for n, v in row.items() if n not in ("step_time", "learning_rate")} for row in metrics(trainer)
    ]
    return log, snapshot(trainer)["policy"], sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in SIDES for name in [*BOTH, *OF[kind]]])
def test_it_changes_the_run(tmp_path, kind, name):
    value, needs = (BOTH | OF[kind])[name]
    before = outcome(kind, tmp_path / "before", **{k: v for k, v in needs.items() if k != name})
    after = outcome(kind, tmp_path / "after", **{**needs, name: value})
    assert not same(before, after)


@pytest.mark.parametrize("kind", SIDES)
def test_the_same_options_give_the_same_run(tmp_path, kind):
    assert same(outcome(kind, tmp_path / "once"), outcome(kind, tmp_path / "again"))


@pytest.mark.parametrize("kind", SIDES)
def test_no_field_is_forgotten(kind):
    fields = {item.name for item in dataclasses.fields(SIDES[kind][1])}
    tables = [set(BOTH), set(OF[kind]), APART, TRANSFORMERS, fields & set(REFUSED)]
    assert set().union(*tables) == fields
    assert sum(map(len, tables)) == len(fields), "a field is in two tables"


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, i.name) for k in SIDES for i in dataclasses.fields(SIDES[k][1]) if i.name in REFUSED],
)
@pytest.mark.filterwarnings("ignore")
def test_it_is_refused(tmp_path, kind, name):
    config = SIDES[kind][1](output_dir=str(tmp_path), use_cpu=True, report_to=[])
    value = getattr(config, name)
    if name in ANOTHER_OF_THESE:
        other = ANOTHER_OF_THESE[name]
    elif value is None or isinstance(value, (list, dict)) or (not value and isinstance(value, str)):
        other = "anything"
    else:
        other = ANOTHER[type(value)](value)
    setattr(
        config, name, other
    )  # transformers itself refuses some in its constructor, and imports for others
    with pytest.raises(ValueError, match=f"{name} is .*, which is not supported: "):
        config._check()


# One by one


def test_bf16_is_taken_back_on_a_cpu(tmp_path):
    with pytest.warns(UserWarning, match="bf16=True on a CPU computes in float32"):
        trainer = group_trainer("grpo", tmp_path, bf16=True)
    assert not trainer.args.bf16


def test_fp16(tmp_path):
    with pytest.raises(ValueError, match="fp16=True needs loss scaling"):
        group_config("grpo", tmp_path, fp16=True)


def test_gradient_checkpointing(tmp_path):
    trainers = [
        group_trainer("grpo", tmp_path, gradient_checkpointing=on, gradient_checkpointing_kwargs=kwargs)
        for on, kwargs in ((False, None), (True, {"use_reentrant": True}))
    ]
    off, on = (trainer.policy_model.model for trainer in trainers)
    assert on.gradient_checkpointing and not off.gradient_checkpointing
    assert on.layers[0]._gradient_checkpointing_func.keywords["use_reentrant"] is True


@pytest.mark.parametrize("kept", [True, False])
def test_remove_unused_columns(tmp_path, kept):
    seen = []

    def looks(completions, **columns):
        seen.append("number" in columns)
        return [0.0] * len(completions)

    group_trainer("grpo", tmp_path, reward_funcs=looks, max_steps=1, remove_unused_columns=not kept).train()
    assert seen == [kept]


def test_models_by_name(tmp_path, monkeypatch):
    tiny_llama().save_pretrained(tmp_path / "policy")
    tiny_tokenizer().save_pretrained(tmp_path / "policy")
    tiny_llama_classifier().save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    given = {
        "model": str(tmp_path / "policy"),
        "processing_class": None,
        "reward_funcs": str(tmp_path / "reward"),
    }
    trainer = group_trainer("rloo", tmp_path / "run", **given, max_steps=1)
    trainer.train()
    assert "rewards/reward/mean" in trainer.state.log_history[0]
    assert next(trainer.policy_model.parameters()).dtype == torch.float32
    half = group_trainer("rloo", tmp_path / "run", **given, model_init_kwargs='{"dtype": "bfloat16"}')
    assert next(half.policy_model.parameters()).dtype == torch.bfloat16
    asked = []
    from fastrlhf.grpo import arguments

    for name in ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer"):
        real = getattr(arguments, name)

        class Spy(real):
            @classmethod
            def from_pretrained(cls, *args, real=real, **kwargs):
                asked.append(kwargs.get("trust_remote_code"))
                return real.from_pretrained(*args, **kwargs)

        monkeypatch.setattr(arguments, name, Spy)
    group_trainer("rloo", tmp_path / "run", **given, trust_remote_code=True)
    assert asked == [True] * 4


def test_disable_dropout(tmp_path):
    with pytest.raises(ValueError, match=r"has dropout \(attention_dropout=0.5\).*set disable_dropout=True"):
        group_trainer("grpo", tmp_path, model=tiny_llama(attention_dropout=0.5))
    trainer = group_trainer("grpo", tmp_path, model=tiny_llama(attention_dropout=0.5), disable_dropout=True)
    assert trainer.policy_model.model.layers[0].self_attn.attention_dropout == 0.0


def test_chat_template_kwargs(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if hint %}t9 {% endif %}t8"
    )
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"t{row}"}]} for row in range(4)])
    for kwargs, expected in ((None, [0, 8]), ({"hint": True}, [0, 9, 8])):
        seen = []

        def looks(prompts, completions, seen=seen, **_):
            seen.append((prompts[0], completions[0]))
            return [0.0] * len(completions)

        trainer = group_trainer(
            "grpo",
            tmp_path,
            processing_class=tokenizer,
            train_dataset=rows,
            reward_funcs=looks,
            chat_template_kwargs=kwargs,
            max_steps=1,
        )
        assert trainer.train_dataset[0]["input_ids"] == expected
        trainer.train()
        (prompt, completion) = seen[0]
        assert prompt[0]["role"] == "user"
        assert [list(message) for message in completion] == [["role", "content"]]
        assert completion[0]["role"] == "assistant"


def test_completions_are_shown_and_written(tmp_path, capsys):
    def with_extra(completions, log_extra, log_metric, **_):
        log_extra("words", [len(text.split()) for text in completions])
        log_metric("most", max(len(text.split()) for text in completions))
        return [0.5] * len(completions)

    def files(name, **options):
        trainer = group_trainer(
            "grpo", tmp_path / name, log_completions=True, logging_steps=2, reward_funcs=with_extra, **options
        )
        trainer.train()
        assert "most" in trainer.state.log_history[0]
        paths = sorted((tmp_path / name / "completions").glob("*.parquet"))
        assert [path.name for path in paths] == ["completions_00002.parquet", "completions_00004.parquet"]
        return pandas.read_parquet(paths[0]), capsys.readouterr().out.count("0.500")

    whole, printed = files("whole")
    assert list(whole.columns) == ["step", "prompt", "completion", "with_extra", "words", "advantage"]
    assert len(whole) == 16 and printed == 32
    assert files("few", num_completions_to_print=3)[1] == 6
    assert len(files("unique", log_unique_prompts=True)[0]) == 4
    group_trainer("grpo", tmp_path / "none", max_steps=1).train()
    assert not (tmp_path / "none" / "completions").exists()


@pytest.mark.parametrize(("rows", "passes"), [(64, 1), (2, 4)])
def test_rows_without_gradient(tmp_path, monkeypatch, rows, passes):
    from fastrlhf.ppo import loop

    counted = []
    real = loop.reference_logprobs
    monkeypatch.setattr(loop, "reference_logprobs", lambda *a, **k: counted.append(1) or real(*a, **k))
    group_trainer("grpo", tmp_path, beta=0.1, max_steps=1, local_rollout_forward_batch_size=rows).train()
    assert len(counted) == passes


@pytest.mark.parametrize(("reuse", "forwards"), [(None, 4), (True, 4), (False, 5)])
def test_reuse_rollout_logprobs(tmp_path, reuse, forwards):
    """In two micro-batches: else the forward of the first update is the evaluation's too."""
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    options = {"num_iterations": 2, "max_steps": 2, "reuse_rollout_logprobs": reuse}
    trainer = group_trainer("grpo", tmp_path, **halves, **options)
    calls = []
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == forwards


def test_how_models_compute(tmp_path):
    assert is_accelerated(group_trainer("grpo", tmp_path).policy_model)
    assert not is_accelerated(group_trainer("grpo", tmp_path, accelerate=False).policy_model)
    assert group_trainer("grpo", tmp_path, packing=False).model.packing is False
    trainer = group_trainer("grpo", tmp_path, trainable_layers=1, frozen_states_bytes="1KB")
    assert trainer.frozen_states.limit == 1000 and trainer.frozen_states.depth == 1


def test_packed_weight_bytes(tmp_path, monkeypatch):
    from fastrlhf.ppo import roles

    given = []
    monkeypatch.setattr(roles, "limit_packed", given.append)
    group_trainer("grpo", tmp_path, packed_weight_bytes="2MB")
    assert given == [2_000_000] and packed.limit_packed is not roles.limit_packed


@pytest.mark.parametrize("kind", SIDES)
def test_little_memory(tmp_path, kind):
    """Policy, reference and reward model move, and nothing changes."""

    def run(name, **options):
        given = {"reward_funcs": tiny_llama_classifier(5), "reward_processing_classes": tiny_tokenizer()}
        trainer = group_trainer(kind, tmp_path / name, beta=0.1, **given, **options)
        trainer.train()
        log = [{n: v for n, v in row.items() if n != "step_time"} for row in metrics(trainer)]
        return log, snapshot(trainer)["policy"], trainer.optimizer.manager.device_meter

    *plenty, _ = run("plenty", device_memory="1GB")
    *little, meter = run("little", device_memory="60kB", host_memory="2MB")
    *disk, _ = run("disk", device_memory="60kB", offload_dir=str(tmp_path))
    assert same(plenty, little) and same(plenty, disk)
    assert meter.peak <= meter.capacity == 60_000
    with pytest.raises(ValueError, match="a reference that may be away cannot be moved"):
        group_config(kind, tmp_path, beta=0.1, sync_ref_model=True, device_memory="1GB")
    with pytest.raises(ValueError, match="offload_activations=True needs the memory manager"):
        group_config(kind, tmp_path, offload_activations=True)


def test_max_skipped_updates(tmp_path):
    from fastrlhf.trainers.guard import TrainingStopped

    trainer = group_trainer("grpo", tmp_path, max_skipped_updates=2)
    with torch.no_grad():
        trainer.policy_model.lm_head.weight.fill_(1e38)
    with pytest.warns(UserWarning), pytest.raises((TrainingStopped, FloatingPointError)):
        trainer.train()
