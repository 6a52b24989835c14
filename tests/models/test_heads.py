"""Heads: the language model's, tied, biased, capped or refused, and the scalar ones."""

import pytest
import torch
from peft import get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from fastrlhf.models.actor_critic import reference_logprobs
from fastrlhf.models.backbone import final_hidden_states
from fastrlhf.models.heads import ValueHead, check_language_model_head, language_model_head
from tests.support.toy import (
    EOS,
    PAD,
    VOCABULARY,
    plain_logprobs,
    toy_lora,
    toy_model,
    toy_rollout,
    toy_trainer,
)


def small(config_class, model_class, **options):
    """A model of another family in evaluation mode."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=48,
        initializer_range=0.4,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        **options,
    )
    return model_class(config).eval()


def gemma2(softcap):
    return small(
        Gemma2Config, Gemma2ForCausalLM, head_dim=8, final_logit_softcapping=softcap, sliding_window=4
    )


@pytest.mark.parametrize("softcap", [1.5, 30.0, None])
def test_softcap(softcap):
    model, rollout = gemma2(softcap), toy_rollout()
    check_language_model_head(model)
    assert language_model_head(model).softcap == softcap
    with torch.no_grad():
        actual = reference_logprobs(model, rollout.responses(slice(None)), 0.7)
    expected = plain_logprobs(model, rollout, 0.7)[:, : actual.shape[1]]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_bias():
    model, rollout = small(PhiConfig, PhiForCausalLM), toy_rollout()
    model.lm_head.bias.data.uniform_(-2, 2)
    check_language_model_head(model)
    with torch.no_grad():
        actual = reference_logprobs(model, rollout.responses(slice(None)), 1.3)
    torch.testing.assert_close(actual.double(), plain_logprobs(model, rollout, 1.3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_tied_embeddings(tmp_path, shape):
    model = toy_model(shape, tie_word_embeddings=True)
    assert language_model_head(model).weight is model.get_input_embeddings().weight
    trainer = toy_trainer(tmp_path, model=model, ref_model=None)
    before = model.get_input_embeddings().weight.clone()
    trainer.train()
    assert language_model_head(model).weight is model.get_input_embeddings().weight
    assert not torch.equal(before, model.get_input_embeddings().weight)
    assert torch.equal(before, trainer.ref_model.get_output_embeddings().weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda: small(CohereConfig, CohereForCausalLM, logit_scale=0.0625),
        lambda: small(GraniteConfig, GraniteForCausalLM, logits_scaling=8.0),
    ],
    ids=["cohere", "granite"],
)
def test_scaled_logits_are_refused(tmp_path, make):
    model = make()
    with pytest.raises(ValueError, match=f"{type(model).__name__} does more to its logits than one linear"):
        check_language_model_head(model)
    with pytest.raises(ValueError, match="does more to its logits"):
        toy_trainer(tmp_path, model=model)


def test_a_scale_of_one_is_no_scale():
    check_language_model_head(small(GraniteConfig, GraniteForCausalLM, logits_scaling=1.0))


def test_the_check_leaves_the_mode_and_does_not_mind_dropout():
    for training in (True, False):
        model = toy_model("gpt2", resid_pdrop=0.9, embd_pdrop=0.9).train(training)
        check_language_model_head(model)
        assert model.training == training


def test_an_adapter_on_the_head_is_refused():
    config = toy_lora(target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="output head of LlamaForCausalLM is a Linear, expected torch"):
        language_model_head(get_peft_model(toy_model(), config))


def test_value_head_in_bfloat16_gives_float32():
    head = ValueHead(4).to(torch.bfloat16)
    torch.nn.init.constant_(head.score.weight, 0.5)
    values = head(torch.ones(2, 3, 4))
    assert values.dtype == torch.float32
    assert values.tolist() == [[2.0] * 3] * 2


def test_final_hidden_states_are_after_the_final_norm():
    model = toy_model()
    ids = torch.tensor([[1, 2, 3]])
    states = final_hidden_states(model, ids, torch.ones_like(ids).bool())
    torch.testing.assert_close(model.lm_head(states), model(ids).logits)
