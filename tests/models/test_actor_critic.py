"""Policy and critic as one module, and the parts of a Hugging Face model."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from fastrlhf.models.accelerate import accelerate
from fastrlhf.models.actor_critic import ActorCritic, Responses
from fastrlhf.models.backbone import (
    backbone,
    base_model,
    context_length,
    disable_dropout,
    evaluation_mode,
    final_hidden_states,
    hidden_size,
    is_peft,
    packed_hidden_states,
    reference_mode,
)
from fastrlhf.models.heads import ValueHead
from tests.support.toy import (
    PAD,
    VOCABULARY,
    plain_logprobs,
    set_value_head,
    toy_lora,
    toy_model,
    toy_rollout,
)


def test_response_states_stand_one_before_their_tokens():
    ids = torch.tensor([[PAD, 1, 2, 5, 6, 7]])
    responses = Responses(ids, ids != PAD, 3, torch.ones(1, 3).bool())
    states = torch.arange(6.0)[None, :, None]
    for columns in (6, 5):  # with the last one or without
        assert responses.response_states(states[:, :columns])[0, :, 0].tolist() == [2.0, 3.0, 4.0]
    assert responses.targets().tolist() == [[5, 6, 7]]


def test_the_last_token_of_the_longest_responses_is_not_computed():
    responses = toy_rollout().responses(slice(None))
    model, seen = accelerate(toy_model()), []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    ActorCritic(model, ValueHead(16))(responses, 0.8)
    assert responses.attention_mask[:, -1].any(), "a response as long as can be"
    assert seen == [(1, int(responses.attention_mask[:, :-1].sum()), 16)]


def test_logprobs_and_entropy_are_zero_where_the_mask_is_false():
    responses = toy_rollout().responses(slice(None))
    output = ActorCritic(toy_model(), ValueHead(16))(responses, 1.0)
    for tensor in (output.logprobs, output.entropy):
        assert tensor.shape == responses.mask.shape
        assert not tensor[~responses.mask].any()
    assert (output.logprobs[responses.mask] < 0).all()
    assert (output.entropy[responses.mask] > 0).all()


@pytest.mark.parametrize("detach", [True, False])
def test_the_value_loss_reaches_the_policy_only_where_it_may(detach):
    model = ActorCritic(toy_model(), ValueHead(16), detach_value=detach)
    set_value_head(model.value_model)
    model(toy_rollout().responses(slice(None)), 1.0).values.sum().backward()
    assert model.value_model.score.weight.grad.any()
    reached = [name for name, p in model.policy.named_parameters() if p.grad is not None and p.grad.any()]
    assert bool(reached) == (not detach)


def test_a_critic_of_its_own_is_not_reached_by_the_policy_loss():
    model = ActorCritic(toy_model(), toy_model("gpt2", scorer=True))
    assert not model.shares_base
    model(toy_rollout().responses(slice(None)), 1.0).logprobs.sum().backward()
    assert all(p.grad is None for p in model.value_model.parameters())
    assert any(p.grad is not None for p in model.policy.parameters())


def test_a_critic_without_a_score_head_is_refused():
    with pytest.raises(ValueError, match="value_model is a LlamaForCausalLM without a `score` head"):
        ActorCritic(toy_model(), toy_model(seed=1))
    with pytest.raises(ValueError, match="value_model is a Linear without a `score` head"):
        ActorCritic(toy_model(), nn.Linear(16, 1))


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_parts(shape):
    model = toy_model(shape)
    assert backbone(model) is model.base_model
    assert base_model(model) is model
    assert hidden_size(model) == 16
    assert context_length(model) == 48
    assert not is_peft(model)


def test_parts_of_a_peft_model():
    inside = toy_model()
    model = get_peft_model(inside, toy_lora())
    assert is_peft(model)
    assert base_model(model) is inside
    assert backbone(model) is inside.model
    assert hidden_size(model) == 16


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_packed_states_are_the_padded_ones(shape):
    model = toy_model(shape)
    responses = toy_rollout(left=3).responses(slice(None))
    mask = responses.attention_mask
    with torch.no_grad():
        padded = final_hidden_states(model, responses.input_ids, mask)
        packed = packed_hidden_states(model, responses.input_ids, mask)
    torch.testing.assert_close(packed[mask], padded[mask], rtol=1e-5, atol=1e-5)
    assert not packed[~mask].any()


@pytest.mark.parametrize("hidden_states", [final_hidden_states, packed_hidden_states])
def test_what_stands_at_padding_does_not_matter(hidden_states):
    model = toy_model("gpt2")
    responses = toy_rollout().responses(slice(None))
    mask = responses.attention_mask
    with torch.no_grad():
        expected = hidden_states(model, responses.input_ids, mask)
        junk = hidden_states(model, responses.input_ids.masked_fill(~mask, 3), mask)
    assert torch.equal(expected[mask], junk[mask])


def test_sequences_of_one_token_pack():
    model = toy_model("gpt2")
    ids = torch.tensor([[1], [2], [3]])
    with torch.no_grad():
        packed = packed_hidden_states(model, ids, torch.ones_like(ids).bool())
        alone = torch.cat([model.transformer(ids[row : row + 1]).last_hidden_state for row in range(3)])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_reference_mode_turns_the_adapter_off_and_on_again():
    torch.manual_seed(0)
    model = get_peft_model(toy_model(), toy_lora())
    rollout = toy_rollout()
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    adapted = plain_logprobs(base_model(model), rollout, 1.0)
    with reference_mode(model) as reference:
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(reference(input_ids=ids).logits, toy_model()(ids).logits)
    assert torch.equal(plain_logprobs(base_model(model), rollout, 1.0), adapted)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable


def test_reference_mode_with_an_adapter_of_its_own():
    torch.manual_seed(0)
    model = get_peft_model(toy_model(), toy_lora(), adapter_name="policy")
    model.add_adapter("reference", toy_lora())
    model.set_adapter("policy")
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    ids = torch.tensor([[1, 2, 3]])
    policy = model(input_ids=ids).logits
    with reference_mode(model, "reference", "policy"):
        assert not torch.allclose(model(input_ids=ids).logits, policy)
    assert torch.equal(model(input_ids=ids).logits, policy)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable


def test_disable_dropout_finds_modules_and_plain_numbers():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = 0.5
            self.hidden_dropout = 0.25
            self.layerdrop = 0.1
            self.scale = 0.5
            self.inside = nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.5))

    layer = Layer()
    disable_dropout(layer)
    assert (layer.dropout, layer.hidden_dropout, layer.layerdrop, layer.scale) == (0.0, 0.0, 0.0, 0.5)
    assert [module.p for module in layer.inside] == [0.0] * 3


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_is_left_again(training):
    model = toy_model().train(training)
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not model.training
        raise RuntimeError
    assert model.training == training


def test_vocabulary_of_toys_matches():
    assert toy_model().get_output_embeddings().weight.shape[0] == VOCABULARY
