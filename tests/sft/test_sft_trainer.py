"""What a run of supervised fine-tuning computes, whatever its batches look like."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, TrainingArguments

from fastrlhf import SFTConfig, SFTTrainer
from fastrlhf.data.tokenize import IGNORED
from fastrlhf.models.backbone import is_accelerated
from tests.support.runs import same
from tests.support.sft import completions, conversations, losses, sft_config, sft_trainer, texts
from tests.support.tiny import EOS, tiny_gpt2, tiny_llama, tiny_tokenizer


def trained(folder, **options):
    trainer = sft_trainer(folder, **options)
    trainer.train()
    return trainer


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def close(one, other, tolerance=2e-5):
    torch.testing.assert_close(losses(one), losses(other), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(one), weights(other), rtol=tolerance, atol=tolerance)


def by_hand(rows, tokenizer, steps, learning_rate=1e-3, batch=4):
    """Losses of plain PyTorch on whole logits, a row at a time, with AdamW and a linear schedule."""
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    found = []
    for step in range(steps):
        picked = [
            tokenizer(row["text"] + " <eos>")["input_ids"] for row in rows[step * batch : (step + 1) * batch]
        ]
        count = sum(len(tokens) - 1 for tokens in picked)
        total = 0.0
        for tokens in picked:
            logits = model(torch.tensor([tokens])).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(
                logits, torch.tensor(tokens[1:]), reduction="sum"
            )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append((total / count).item())
    return found, model


def test_it_is_plain_cross_entropy_over_the_whole_batch(tmp_path):
    rows = texts()
    trainer = trained(tmp_path, train_dataset=rows, train_sampling_strategy="sequential")
    expected, model = by_hand(rows, tiny_tokenizer(), steps=6)
    torch.testing.assert_close(losses(trainer), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(trainer), dict(model.state_dict()), rtol=1e-5, atol=2e-5)


CASES = {
    "padded": {"unpadded": False},
    "transformers' own": {"accelerate": False},
    "transformers' own, without padding": {"accelerate": False, "padding_free": True},
    "micro-batches of one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "one micro-batch": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    "checkpointed activations": {"gradient_checkpointing": True},
    "to a multiple": {"pad_to_multiple_of": 16},
    "padded to a multiple": {"unpadded": False, "pad_to_multiple_of": "16"},
    "packed weights": {"packed_weight_bytes": "10MB"},
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("case", CASES)
def test_the_way_it_is_computed_does_not_change_what_is_learned(tmp_path, usual, case):
    other = trained(tmp_path, **CASES[case])
    close(usual, other)
    assert is_accelerated(other.model) == ("transformers" not in case)


@pytest.mark.parametrize("accelerate", [True, False])
def test_packed_sequences_do_not_see_each_other(tmp_path, accelerate):
    """All rows in one packed row, and all in one batch: the same mean over the same tokens."""
    options = {"max_steps": 2, "gradient_accumulation_steps": 1, "accelerate": accelerate}
    rows = texts(8)
    packed = trained(
        tmp_path / "packed",
        train_dataset=rows,
        packing=True,
        max_length=500,
        per_device_train_batch_size=1,
        **options,
    )
    assert len(packed.train_dataset) == 1
    apart = trained(tmp_path / "apart", train_dataset=rows, per_device_train_batch_size=8, **options)
    close(packed, apart)


def test_gpt2_with_tied_embeddings(tmp_path):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    model = tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ours = trained(tmp_path / "ours", model=model, **options)
    model = tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    close(ours, trained(tmp_path / "theirs", model=model, accelerate=False, **options))


def test_only_completions_count_or_all(tmp_path):
    rows = completions()
    trainer = sft_trainer(tmp_path, train_dataset=rows)
    assert trainer.completion_only_loss
    labels = trainer.train_dataset[0]["labels"]
    prompt = len(rows[0]["prompt"].split())
    assert labels[:prompt] == [IGNORED] * prompt and labels[-1] == EOS and IGNORED not in labels[prompt:]
    everything = sft_trainer(tmp_path, train_dataset=rows, completion_only_loss=False)
    assert IGNORED not in everything.train_dataset[0]["labels"]


def test_only_what_the_assistant_says_counts(tmp_path):
    trainer = sft_trainer(tmp_path, train_dataset=conversations(), assistant_only_loss=True)
    for row in trainer.train_dataset:
        said = [label for label in row["labels"] if label != IGNORED]
        assert said.count(EOS) == row["input_ids"].count(EOS) and len(said) < len(row["labels"]) / 2 + 2
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_an_adapter_alone_is_trained_and_saved(tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = sft_trainer(tmp_path, peft_config=lora, gradient_checkpointing=True)
    base = {name: weight.clone() for name, weight in trainer.model.named_parameters() if "lora_" not in name}
    trainer.train()
    assert losses(trainer)[-1] != losses(trainer)[0]
    assert all(
        torch.equal(dict(trainer.model.named_parameters())[name], weight) for name, weight in base.items()
    )
    trainer.save_model(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "saved")
    for name, weight in loaded.named_parameters():
        torch.testing.assert_close(weight, dict(trainer.model.named_parameters())[name])


def test_a_model_by_its_path_with_its_own_tokenizer(tmp_path, usual):
    tiny_llama().save_pretrained(tmp_path / "model", max_shard_size="10MB")
    usual.processing_class.save_pretrained(tmp_path / "model")
    trainer = SFTTrainer(str(tmp_path / "model"), sft_config(tmp_path / "run"), train_dataset=texts())
    trainer.train()
    assert same(losses(trainer), losses(usual))
    narrow = sft_config(tmp_path / "run", model_init_kwargs={"dtype": "bfloat16"})
    trainer = SFTTrainer(str(tmp_path / "model"), narrow, train_dataset=texts())
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.bfloat16}


def test_the_result_loads_as_a_plain_model(tmp_path, usual):
    usual.save_model(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, usual.model.state_dict()[name]), name


def test_evaluation(tmp_path):
    held_out = texts(7, seed=1)
    trainer = trained(
        tmp_path, eval_dataset=held_out, eval_strategy="steps", eval_steps=2, eval_on_start=True
    )
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [0, 2, 4, 6]
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy", "eval_num_tokens"} <= metrics.keys()
    assert metrics["eval_loss"] == evaluated[-1]["eval_loss"]
    padded = trained(tmp_path, eval_dataset=held_out, unpadded=False)
    assert padded.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-4)
    assert {"test_loss", "eval_entropy"} <= trainer.evaluate(metric_key_prefix="test").keys()
    several = sft_trainer(tmp_path, eval_dataset={"a": held_out, "b": texts(3)})
    assert {"eval_a_loss", "eval_b_loss"} <= several.evaluate().keys()


def test_an_evaluation_of_other_rows(tmp_path, usual):
    metrics = usual.evaluate(texts(5, seed=2))
    assert metrics["eval_loss"] > 0
    assert usual.evaluate({"new": texts(5, seed=2)})["eval_new_loss"] == metrics["eval_loss"]


def test_accuracy_and_entropy_are_means_over_targets(tmp_path):
    trainer = trained(tmp_path, max_steps=1, train_sampling_strategy="sequential")
    entry = trainer.state.log_history[0]
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    entropies, correct = [], []
    for row in texts()[:4]:
        tokens = torch.tensor(tokenizer(row["text"] + " <eos>")["input_ids"])
        log_p = torch.log_softmax(model(tokens[None]).logits[0, :-1], dim=-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1))
        correct.append((log_p.argmax(-1) == tokens[1:]).float())
    assert entry["entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-5)
    assert entry["mean_token_accuracy"] == pytest.approx(torch.cat(correct).mean().item(), rel=1e-5)
    assert entry["num_tokens"] == sum(len(row["text"].split()) + 1 for row in texts()[:4])


def test_a_collator_of_ones_own(tmp_path, usual):
    tokenizer = usual.processing_class
    tokenizer.padding_side = "right"

    def collate(rows):
        kept = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
        return dict(DataCollatorForSeq2Seq(tokenizer)(kept))

    close(usual, trained(tmp_path, data_collator=collate))


def test_transformers_arguments_in_place_of_ours(tmp_path):
    args = TrainingArguments(str(tmp_path), learning_rate=3e-3, use_cpu=True, report_to=[])
    trainer = SFTTrainer(tiny_llama(), args, train_dataset=texts(), processing_class=tiny_tokenizer())
    assert isinstance(trainer.args, SFTConfig) and trainer.args.learning_rate == 3e-3
    assert trainer.args.max_length == 1024
