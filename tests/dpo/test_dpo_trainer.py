"""What a run of direct preference optimization computes, whatever its batches and its reference look like."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments

from fastrlhf import DPOConfig, DPOTrainer
from tests.sft.test_sft_trainer import close, weights
from tests.support.preferences import conversations, dpo_trainer, pairs
from tests.support.runs import same
from tests.support.sft import losses
from tests.support.tiny import EOS, tiny_gpt2, tiny_llama, tiny_tokenizer

LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def trained(folder, **options):
    trainer = dpo_trainer(folder, **options)
    trainer.train()
    return trainer


def by_hand(rows, steps, learning_rate=1e-3, batch=4, beta=0.1):
    """Losses of plain PyTorch on whole logits, a row at a time, with AdamW and a linear schedule."""
    model, reference, tokenizer = tiny_llama(), tiny_llama(), tiny_tokenizer()

    def logp(one, row, side):
        tokens = torch.tensor(tokenizer(row["prompt"] + row[side] + " <eos>")["input_ids"])
        log_p = torch.log_softmax(one(tokens[None]).logits[0, :-1], dim=-1)
        prompt = len(row["prompt"].split())
        return log_p.gather(1, tokens[1:, None])[prompt - 1 :].sum()

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    found = []
    for step in range(steps):
        total = 0.0
        for row in rows[step * batch : (step + 1) * batch]:
            with torch.no_grad():
                ratio = logp(reference, row, "chosen") - logp(reference, row, "rejected")
            ours = logp(model, row, "chosen") - logp(model, row, "rejected")
            total = total - torch.nn.functional.logsigmoid(beta * (ours - ratio)) / batch
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(total.item())
    return found, model


def test_it_is_dpo_on_whole_logits(tmp_path):
    trainer = trained(tmp_path, train_sampling_strategy="sequential")
    expected, model = by_hand(pairs(), steps=6)
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
    "padded to a multiple": {"unpadded": False, "pad_to_multiple_of": 16},
    "a reference of its own": {"ref_model": tiny_llama},
    "precomputed": {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 5},
    "precomputed, a reference of its own": {"precompute_ref_log_probs": True, "ref_model": tiny_llama},
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("case", CASES)
def test_the_way_it_is_computed_does_not_change_what_is_learned(tmp_path, usual, case):
    options = {name: value() if callable(value) else value for name, value in CASES[case].items()}
    close(usual, trained(tmp_path, **options))


def test_it_learns_to_prefer(tmp_path):
    trainer = trained(tmp_path, learning_rate=1e-2, max_steps=20)
    first, last = (trainer.state.log_history[at] for at in (0, -2))
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert last["rewards/accuracies"] == 1 and last["rewards/margins"] > 0.3 and last["loss"] < 0.6
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], rel=1e-5
    )


def test_the_reference_stays_as_it_was(tmp_path, usual):
    for name, weight in usual.ref_model.state_dict().items():
        assert torch.equal(weight, tiny_llama().state_dict()[name]), name
    assert not usual.ref_model.training
    assert not any(parameter.requires_grad for parameter in usual.ref_model.parameters())


def test_a_new_adapters_reference_is_the_model_without_it(tmp_path):
    options = {"peft_config": LoraConfig(**LORA, init_lora_weights=False), "max_steps": 3}
    trainer = dpo_trainer(tmp_path / "off", **options)
    assert trainer.ref_model is None
    trainer.train()
    assert trainer.model.training
    explicit = trained(tmp_path / "explicit", ref_model=tiny_llama(), **options)
    precomputed = trained(tmp_path / "precomputed", precompute_ref_log_probs=True, **options)
    assert losses(trainer)[0] != pytest.approx(0.6931, abs=1e-5), "the adapter starts at random"
    close(trainer, explicit)
    close(trainer, precomputed)


def test_the_reference_has_no_dropout_where_the_policy_has(tmp_path):
    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    trainer = dpo_trainer(
        tmp_path, model=tiny_gpt2(), peft_config=lora, disable_dropout=False, precompute_ref_log_probs=True
    )
    without = dpo_trainer(tmp_path, model=tiny_gpt2(), precompute_ref_log_probs=True)
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        torch.testing.assert_close(
            list(trainer.train_dataset[name]), list(without.train_dataset[name]), rtol=1e-5, atol=1e-5
        )


def test_an_old_adapters_reference_is_a_copy_of_it_on_the_same_base(tmp_path):
    model = get_peft_model(tiny_llama(), LoraConfig(**LORA, init_lora_weights=False))
    trainer = dpo_trainer(tmp_path / "copy", model=copy.deepcopy(model), max_steps=3)
    ours, its = dict(trainer.model.named_parameters()), dict(trainer.ref_model.named_parameters())
    for name in ours:
        assert (ours[name].data_ptr() == its[name].data_ptr()) == ("lora_" not in name), name
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-4)
    explicit = trained(
        tmp_path / "explicit", model=copy.deepcopy(model), ref_model=copy.deepcopy(model), max_steps=3
    )
    close(trainer, explicit)


def test_evaluation(tmp_path):
    held_out = pairs(7, seed=1)
    trainer = trained(tmp_path, eval_dataset=held_out, eval_strategy="steps", eval_steps=2)
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_rewards/accuracies", "eval_logps/chosen", "eval_num_tokens"} <= metrics.keys()
    assert trainer.evaluate(held_out)["eval_loss"] == metrics["eval_loss"]
    assert trainer.evaluate({"new": held_out})["eval_new_loss"] == metrics["eval_loss"]
    in_parts = trained(tmp_path, eval_dataset=held_out, per_device_eval_batch_size=3)
    assert in_parts.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    several = dpo_trainer(
        tmp_path, eval_dataset={"a": held_out, "b": pairs(3)}, precompute_ref_log_probs=True
    )
    assert {"eval_a_loss", "eval_b_loss"} <= several.evaluate().keys()


def test_rows_that_come_after_training_need_a_reference_that_is_kept(tmp_path):
    trainer = trained(tmp_path, precompute_ref_log_probs=True, eval_dataset=pairs(3))
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="keeps no reference, and the model has been trained"):
        trainer.evaluate(pairs(5))
    kept = trained(tmp_path, precompute_ref_log_probs=True, ref_model=tiny_llama())
    assert kept.evaluate(pairs(5))["eval_loss"] > 0


def test_conversations_without_a_prompt_of_their_own(tmp_path):
    row = dpo_trainer(tmp_path, train_dataset=conversations()).train_dataset[0]
    words = pairs()[0]["prompt"].split()
    assert row["prompt_ids"][1:-2] == [int(word[1:]) for word in words]
    assert row["chosen_ids"].count(EOS) == row["rejected_ids"].count(EOS) == 1


def test_tied_embeddings_and_no_mean_logits_after_a_softcap(tmp_path):
    model = tiny_gpt2()
    trainer = trained(tmp_path / "gpt2", model=model, max_steps=2)
    close(trainer, trained(tmp_path / "theirs", model=tiny_gpt2(), accelerate=False, max_steps=2))
    assert "logits/chosen" in trainer.state.log_history[0]


def test_a_model_by_its_path(tmp_path, usual):
    tiny_llama().save_pretrained(tmp_path / "model")
    usual.processing_class.save_pretrained(tmp_path / "model")
    args = {name: getattr(usual.args, name) for name in ("max_steps", "learning_rate", "logging_steps")}
    args |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "use_cpu": True}
    config = DPOConfig(str(tmp_path), bf16=False, report_to=[], save_strategy="no", **args)
    trainer = DPOTrainer(str(tmp_path / "model"), args=config, train_dataset=pairs())
    trainer.train()
    assert same(losses(trainer), losses(usual))
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert same(dict(loaded.state_dict()), weights(trainer))


def test_transformers_arguments_in_place_of_ours(tmp_path):
    args = TrainingArguments(str(tmp_path), learning_rate=3e-3, use_cpu=True, report_to=[])
    trainer = DPOTrainer(tiny_llama(), None, args, train_dataset=pairs(), processing_class=tiny_tokenizer())
    assert isinstance(trainer.args, DPOConfig) and trainer.args.learning_rate == 3e-3
