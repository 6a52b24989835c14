"""Rollouts with weights in 8 bits: sampled from the rounded policy, corrected for it, and gone before the update."""

from __future__ import annotations

import weakref

import pytest
import torch

from fastrlhf.generation import run as runs
from fastrlhf.kernels import dequantize
from fastrlhf.models.describe import describe
from fastrlhf.ppo import loop
from tests.ppo.test_learning import scores_of
from tests.support.memory import allocations, without_collection
from tests.support.toy import (
    plain_logprobs,
    toy_config,
    toy_experience,
    toy_lora,
    toy_model,
    toy_trainer,
)

INT8 = {"rollout_weights": "int8"}
CLOSE = {"rtol": 0, "atol": 1e-5}


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def rounded(model):
    """A plain model of the same layers, with what int8 makes of them and of their adapters."""
    copied = toy_model(tie_word_embeddings=False)
    with torch.no_grad():
        copied.model.embed_tokens.weight.copy_(describe(model).embedding)
        codes = runs.quantised(describe(model)).projections()
        for part, target in zip(codes, describe(copied).projections(), strict=True):
            target.weight.copy_(dequantize(part.weight))
    return copied


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("cap", [None, 1.01])
def test_the_update_is_corrected_for_the_rounding(tmp_path, lora, cap):
    options = {} if cap is None else {"rollout_correction_cap": cap}
    trainer = toy_trainer(tmp_path, peft_config=toy_lora() if lora else None, **INT8, **options)
    cap = 2.0 if cap is None else cap
    assert trainer.args.rollout_correction_cap == cap
    assert not trainer.reuses_rollout_logprobs
    rollout = trainer.rollout(first_batch(trainer))
    sampled = plain_logprobs(rounded(trainer.policy_model), rollout, 0.8)
    kept = torch.where(
        rollout.mask, rollout.sampled_logprobs, 0.0
    )  # a pad token that was drawn ends a response
    torch.testing.assert_close(kept.double(), sampled, **CLOSE)
    experience = toy_experience(trainer, rollout)
    trained = plain_logprobs(trainer.policy_model, rollout, 0.8)
    torch.testing.assert_close(experience.logprobs.double(), trained, **CLOSE)
    weights = torch.where(rollout.mask, (trained - sampled).exp().clamp(max=cap), 1.0)
    # of two log-probabilities, either as close as that, times at most the cap
    torch.testing.assert_close(experience.weights.double(), weights, atol=4 * CLOSE["atol"], rtol=0)
    assert (weights[rollout.mask] < 1).any() and (weights[rollout.mask] > 1).any()
    assert bool((weights == cap).any()) == (cap < 2)


def test_merged_adapters_are_what_is_rounded():
    """Beside an int8 base they would take a second product for each layer."""
    from peft import get_peft_model

    model = get_peft_model(toy_model(), toy_lora()).eval()
    parts = list(runs.quantised(describe(model)).projections())
    assert not any(part.adapters for part in parts)
    merged = list(describe(model.merge_and_unload()).projections())
    for part, whole in zip(parts, merged, strict=True):
        error = (dequantize(part.weight) - whole.weight).abs().amax(dim=1)
        assert (error <= 0.51 * part.weight.scales).all()


def test_the_copies_are_gone_before_the_update(tmp_path, monkeypatch):
    codes, quantised = [], runs.quantised

    def watched(decoder):
        made = quantised(decoder)
        codes.extend(weakref.ref(part.weight.codes) for part in made.projections())
        return made

    monkeypatch.setattr(runs, "quantised", watched)
    alive = []
    monkeypatch.setattr(
        loop, "evaluate", lambda *_: alive.extend(code() is not None for code in codes) or 1 / 0
    )
    trainer = toy_trainer(tmp_path, **INT8)
    with without_collection(), pytest.raises(ZeroDivisionError):
        trainer.train()
    assert alive and not any(alive)


def test_a_rollout_keeps_none_of_their_bytes(tmp_path):
    model = toy_model(hidden_size=256, intermediate_size=512)
    trainer = toy_trainer(tmp_path, model=model, **INT8)
    prompts = first_batch(trainer)
    trainer.rollout(prompts)
    copies = sum(part.weight.numel() for part in describe(model).projections())
    measured = allocations(lambda: trainer.rollout(prompts))
    assert measured.peak > copies
    assert measured.kept < 0.02 * copies


def test_completions_that_are_shown_are_the_policys_own(tmp_path, monkeypatch):
    def never(decoder):
        raise AssertionError("quantised for an evaluation")

    trainer = toy_trainer(tmp_path, **INT8)
    trainer.eval_dataset = trainer.train_dataset
    monkeypatch.setattr(runs, "quantised", never)
    assert len(trainer.generate_completions().completions) == 8


def test_training_learns(tmp_path):
    scores = scores_of(tmp_path, 24, **INT8)
    assert scores[0] < 0.1
    assert sum(scores[-3:]) / 3 > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_weights": "int4"}, "rollout_weights is 'int4', expected 'int8' or None"),
        (
            {**INT8, "reuse_rollout_logprobs": True},
            "rollout_weights is 'int8', under which .* reuse_rollout_logprobs=True",
        ),
        (
            {**INT8, "device_memory": "1GB"},
            "rollout_weights is 'int8', copies of .* and device_memory moves them",
        ),
        ({**INT8, "rollout_correction_cap": 0}, "rollout_correction_cap is 0, expected more than 0"),
    ],
)
def test_what_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        toy_config(tmp_path, **options)


def test_a_policy_whose_layers_are_not_known_is_refused(tmp_path):
    model = toy_model()
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(
        ValueError, match=r"rollout_weights is 'int8', which needs .*: a .*MLP has forward hooks"
    ):
        toy_trainer(tmp_path, model=model, **INT8)
    toy_trainer(tmp_path, model=model)


def test_left_alone_nothing_is_corrected(tmp_path):
    trainer = toy_trainer(tmp_path)
    assert trainer.args.rollout_weights is None and trainer.args.rollout_correction_cap is None
    assert trainer.reuses_rollout_logprobs
