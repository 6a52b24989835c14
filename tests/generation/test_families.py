"""Each family that is described generates what transformers does, adapters and all."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fastrlhf.generation import run
from fastrlhf.generation.batches import generate
from fastrlhf.kernels import using
from fastrlhf.models.decoder import CannotDescribe
from fastrlhf.models.describe import describe
from tests.models.test_accelerate import CONFIGS, families, model_of, pair

PAD = 0


@pytest.fixture(autouse=True)
def no_fallback():
    """A notice is an error: these models run on our kernels."""
    run._say_once.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*generates with its own forward")
        yield


def prompts(rows=5, longest=21):
    """Left-padded prompts, some longer than a block of the cache."""
    random = torch.Generator().manual_seed(3)
    lengths = torch.tensor([1, longest, 2, 17, 7][:rows])
    mask = torch.arange(longest) >= (longest - lengths)[:, None]
    return torch.randint(3, 61, (rows, longest), generator=random), mask


def spread(model):
    """Weights so large that a wrong position, mask or weight shows in the tokens, and they are not all one token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
            elif name.endswith("bias"):
                parameter.mul_(0.2)
            else:
                parameter.add_(1)
    return model


def greedy(model, **options):
    ids, mask = prompts()
    return generate(model, ids, mask, max_new_tokens=24, pad_token_id=PAD, temperature=0.0, **options)


def of_transformers(model):
    ids, mask = prompts()
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    return model.generate(input_ids=ids, attention_mask=mask.long(), **options)[:, ids.shape[1] :]


@families
@pytest.mark.parametrize("accelerated", [False, True])
def test_the_tokens_of_transformers(family, accelerated):
    model = spread(model_of(CONFIGS[family]))
    expected = of_transformers(model)
    assert len(set(expected.flatten().tolist())) > 5
    if accelerated:
        import fastrlhf

        model = fastrlhf.accelerate(model)
    assert torch.equal(greedy(model).tokens, expected)


@families
def test_step_by_step_as_compiled(family):
    """The compiled step and the launchers that a GPU uses, on the reference kernels."""
    model = spread(model_of(CONFIGS[family]))
    compiled = greedy(model)
    with using("reference"):
        eager = greedy(model)
    assert torch.equal(compiled.tokens, eager.tokens)
    torch.testing.assert_close(compiled.logprobs, eager.logprobs, rtol=0, atol=1e-4)
    torch.testing.assert_close(compiled.entropy, eager.entropy, rtol=0, atol=1e-4)


@families
def test_logprobs_and_entropy_are_those_of_a_training_forward(family):
    model = model_of(CONFIGS[family])
    ids, mask = prompts()
    found = generate(model, ids, mask, max_new_tokens=9, pad_token_id=PAD, temperature=0.7, seed=4)
    whole = torch.cat([mask, torch.ones_like(found.tokens).bool()], dim=1).long()
    positions = (whole.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        text = torch.cat([ids, found.tokens], dim=1)
        logits = model(text, attention_mask=whole, position_ids=positions).logits[:, ids.shape[1] - 1 : -1]
    expected = torch.log_softmax(logits / 0.7, dim=-1)
    of_tokens = expected.gather(2, found.tokens[..., None]).squeeze(2)
    torch.testing.assert_close(found.logprobs, of_tokens, rtol=0, atol=1e-5)
    entropy = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1e-5)


@families
def test_bfloat16(family):
    model = model_of(CONFIGS[family], torch.bfloat16)
    exact = model_of(CONFIGS[family], torch.bfloat16).float()
    ids, mask = prompts()
    options = {"max_new_tokens": 3, "pad_token_id": PAD, "seed": 1}
    found, expected = (generate(each, ids, mask, **options) for each in (model, exact))
    same = found.tokens[:, 0] == expected.tokens[:, 0]
    assert same.sum() >= 4
    torch.testing.assert_close(found.logprobs[same, 0], expected.logprobs[same, 0], rtol=0, atol=5e-2)


LORA = {
    "llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}


def adapted(family, **options):
    config = LoraConfig(target_modules=LORA[family], r=3, lora_alpha=12, init_lora_weights=False, **options)
    torch.manual_seed(2)
    return get_peft_model(spread(model_of(CONFIGS[family])), config).eval()


@pytest.mark.parametrize("family", LORA)
def test_an_adapter_is_used_in_place(family):
    model = adapted(family, fan_in_fan_out=family == "gpt2")
    expected = of_transformers(model)
    assert not torch.equal(expected, of_transformers(spread(model_of(CONFIGS[family]))))
    found = greedy(model)
    assert torch.equal(found.tokens, expected)
    with using("reference"):
        assert torch.equal(greedy(model).tokens, expected)
    merged = greedy(model.merge_and_unload())
    assert torch.equal(merged.tokens, expected)
    torch.testing.assert_close(merged.logprobs, found.logprobs, rtol=0, atol=1e-3)


def test_adapters_that_are_off_merged_or_several():
    model = adapted("llama", lora_bias=False)
    plain = greedy(spread(model_of(CONFIGS["llama"]))).tokens
    one = greedy(model).tokens
    with model.disable_adapter():
        assert torch.equal(greedy(model).tokens, plain)
    model.merge_adapter()
    assert torch.equal(greedy(model).tokens, one)
    model.unmerge_adapter()
    config = LoraConfig(target_modules=["q_proj", "down_proj"], r=2, init_lora_weights=False, use_rslora=True)
    model.add_adapter("other", config)
    model.base_model.set_adapter(["default", "other"])
    both = greedy(model).tokens
    assert torch.equal(both, of_transformers(model)) and not torch.equal(both, one)


def test_training_weights_are_shared_and_followed():
    model = spread(model_of(CONFIGS["llama"]))
    tensors = {tensor.data_ptr() for tensor in model.parameters()}
    assert {tensor.data_ptr() for tensor in describe(model).tensors()} <= tensors
    before = greedy(model).tokens
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.neg_()
    after = greedy(model).tokens
    assert torch.equal(after, of_transformers(model)) and not torch.equal(after, before)


def test_gradient_checkpointing_and_recorded_hidden_states_change_nothing():
    """Both put hooks on modules, which stay there."""
    model = spread(model_of(CONFIGS["llama"]))
    expected = greedy(model).tokens
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model(torch.tensor([[1, 2]]), output_hidden_states=True)
    assert torch.equal(greedy(model.eval()).tokens, expected)


def refused(change=lambda model: None, family="llama"):
    model = model_of(CONFIGS[family])
    change(model)
    with pytest.raises(CannotDescribe) as reason:
        describe(model)
    return str(reason.value)


def test_what_cannot_be_described_says_why():
    dora = adapted("llama", use_dora=True)
    with pytest.raises(CannotDescribe, match="variant of LoRA"):
        describe(dora)
    hooked = refused(lambda model: model.model.layers[0].mlp.register_forward_hook(lambda *_: None))
    assert "hooks" in hooked
    assert "dtype" in refused(lambda model: model.model.layers[1].mlp.bfloat16())
    other = refused(lambda model: setattr(model.config, "model_type", "elsewhere"))
    assert "'elsewhere' is not known" in other

    class Scaled(torch.nn.Linear):
        pass

    def scale_head(model):
        model.lm_head.__class__ = Scaled

    assert "Scaled" in refused(scale_head)


def test_a_description_that_computes_something_else_is_not_trusted():
    def with_scaled_residual(model):
        layer = model.model.layers[0]
        forward = layer.forward
        layer.forward = lambda *args, **options: 2 * forward(*args, **options)

    assert "computes something else" in refused(with_scaled_residual)


def test_rope_that_changes_with_the_length_is_left_to_the_model():
    from transformers import LlamaConfig

    from tests.models.test_accelerate import SHAPE

    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = spread(model_of(LlamaConfig(**{**SHAPE, "max_position_embeddings": 32}, rope_parameters=rope)))
    assert describe(model).longest == 31
    found = generate(*[model, *prompts()], max_new_tokens=8, pad_token_id=PAD, temperature=0.0)
    ids, mask = prompts()
    expected = copy.deepcopy(model).generate(
        input_ids=ids,
        attention_mask=mask.long(),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=None,
    )
    assert torch.equal(found.tokens, expected[:, ids.shape[1] :])


def test_an_accelerated_copy_gives_the_same_bits():
    plain, ours = pair("llama")
    assert torch.equal(greedy(plain).logprobs, greedy(ours).logprobs)
