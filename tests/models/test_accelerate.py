"""A model made of our operations computes what transformers' does, and stays a Hugging Face model."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

import fastrlhf
from fastrlhf.models import attention_interface, frozen
from fastrlhf.models.backbone import final_hidden_states, is_accelerated, packed_hidden_states, position_ids
from tests.support.precision import assert_as_good_as

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OF_GPT2 = {"vocab_size": 61, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
OF_NEOX = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama, scaled rope": LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ),
    "mistral, window": MistralConfig(**SHAPE, sliding_window=4, head_dim=12),
    "qwen2, a layer with a window": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "qwen3, wide heads": Qwen3Config(**SHAPE, head_dim=16),
    "gemma": GemmaConfig(**SHAPE, head_dim=16),
    "gpt2": GPT2Config(**OF_GPT2, eos_token_id=2, pad_token_id=0),
    "gpt_neox": GPTNeoXConfig(**OF_NEOX),
    "gpt_neox, sequential": GPTNeoXConfig(**OF_NEOX, use_parallel_residual=False),
}
families = pytest.mark.parametrize("family", CONFIGS)


def model_of(config, dtype=torch.float32):
    """A model in evaluation mode, its norms' weights not all one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def pair(family, dtype=torch.float32):
    """The model of transformers, and the accelerated copy of it."""
    model = model_of(CONFIGS[family], dtype)
    return model, fastrlhf.accelerate(copy.deepcopy(model))


def batch():
    """Rows padded on the left, on the right, on both sides and not at all."""
    torch.manual_seed(1)
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[0, :4] = mask[1, 6:] = mask[2, :2] = mask[2, 7:] = False
    return torch.randint(3, 61, (4, 9)), mask


def results(model, ids, **options):
    """Logits at real tokens, and the gradients of all parameters, by name."""
    kept = options.get("attention_mask", torch.ones_like(ids).bool())
    logits = model(ids, **options).logits[kept]
    loss = logits.float().log_softmax(-1).square().mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return {"logits": logits.detach(), **dict(zip(names, gradients, strict=True))}


@families
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_and_every_gradient(family, padded, dtype):
    plain, ours = pair(family, dtype)
    ids, mask = batch()
    options = {"attention_mask": mask, "position_ids": position_ids(mask)} if padded else {}
    exact = results(plain.double(), ids, **options)
    same = results(model_of(CONFIGS[family], dtype), ids, **options)
    for name, value in results(ours, ids, **options).items():
        assert_as_good_as(value, same[name], exact[name], name=name, ulps=32)


@families
def test_under_autocast(family):
    """bfloat16 products between float32 weights and residuals: as near to float32 as transformers is."""
    plain, ours = pair(family)
    ids, _ = batch()
    exact = results(plain, ids)
    with torch.autocast("cpu", torch.bfloat16):
        same, found = (results(model, ids) for model in (plain, ours))
    for name, value in found.items():
        assert value.dtype == same[name].dtype, name
        error, allowed = ((each[name] - exact[name]).float().norm() for each in (found, same))
        assert error <= 1.5 * allowed + 1e-3 * exact[name].norm(), name


@families
def test_every_part_is_replaced_once(family):
    _, ours = pair(family)
    kinds = {type(module) for module in ours.modules() if hasattr(type(module), "accelerated_from")}
    replaced = {kind.__name__ for kind in kinds}
    assert any(name.endswith("Norm") for name in replaced)
    assert ("GPT" in type(ours).__name__) or {name[-3:] for name in replaced} >= {"MLP", "yer", "ion", "orm"}
    again = fastrlhf.accelerate(ours)
    assert {type(module) for module in again.modules() if hasattr(type(module), "accelerated_from")} == kinds


@families
def test_it_generates_the_same_tokens(family):
    plain, ours = pair(family)
    ids, mask = batch()
    mask[:, 4:] = True
    options = {"attention_mask": mask.long(), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(ids, **options), ours.generate(ids, **options))


@families
def test_packed_hidden_states_are_the_padded_ones(family, monkeypatch):
    """By our attention, from the bounds alone: no mask of positions by positions, and no attention of PyTorch's."""
    monkeypatch.setattr(attention_interface, "_plain_attention", None)
    _, ours = pair(family)
    ids, mask = batch()
    padded, packed = (states(ours, ids, mask)[mask] for states in (final_hidden_states, packed_hidden_states))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)


@families
@pytest.mark.parametrize("depth", [1, 2])
def test_the_bottom_and_the_top_are_the_whole(family, depth):
    _, ours = pair(family)
    ids, mask = batch()
    whole = packed_hidden_states(ours, ids, mask)
    entering = frozen.Entering(depth, frozen.bottom_states(ours, depth, ids, mask))
    assert torch.equal(frozen.top_hidden_states(ours, entering, ids, mask), whole)
    assert torch.equal(packed_hidden_states(ours, ids, mask), whole), "and it is whole again"
    assert frozen.splits(ours, depth)


@families
def test_frozen_layers_are_counted_from_the_bottom(family):
    _, ours = pair(family)
    assert frozen.frozen_depth(ours) == 0
    frozen.freeze_below(ours, 1)
    assert frozen.frozen_depth(ours) == 1
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert trained and all(".1." in name for name in trained)
    ours.requires_grad_(False)
    assert frozen.frozen_depth(ours) == 2
    ours.get_input_embeddings().requires_grad_(True)
    assert frozen.frozen_depth(ours) == 0


@pytest.mark.parametrize("cut", ["hole", "row without a token"])
def test_masks_that_are_not_padding_are_heeded(cut):
    plain, ours = pair("llama")
    ids, mask = batch()
    mask[3, 4:6] = False
    kept = mask.clone()
    if cut != "hole":
        mask[3] = kept[3] = False
    options = {"attention_mask": mask, "position_ids": position_ids(mask)}
    found, expected = (model(ids, **options).logits[kept] for model in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_hole_is_never_taken_for_padding_with_a_cache():
    """Real tokens after padding on the right: a decoding step sees them all."""
    mask = torch.tensor([[True, True, False, True]])
    made = attention_interface.make_mask(
        batch_size=1, q_length=1, kv_length=4, q_offset=3, attention_mask=mask
    )
    assert made.dtype == torch.bool and made.flatten().tolist() == [True, True, False, True]


def test_positions_that_start_again_separate_sequences():
    """transformers' own way to say packed, without our bounds."""
    plain, ours = pair("llama")
    ids, positions = torch.randint(3, 61, (1, 7)), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    found, expected = (model(ids, position_ids=positions, use_cache=False).logits for model in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours(ids).logits, found, atol=1e-3)


def test_attention_dropout_is_kept_in_training():
    plain, ours = pair("llama")
    ids, _ = batch()
    for module in ours.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    assert not torch.equal(ours.train()(ids).logits, ours(ids).logits)
    torch.testing.assert_close(ours.eval()(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


def test_weights_are_shared_and_saved_under_the_same_names(tmp_path):
    plain = model_of(CONFIGS["llama"])
    before = {name: parameter.data_ptr() for name, parameter in plain.named_parameters()}
    ours = fastrlhf.accelerate(plain)
    assert ours is plain
    assert {name: parameter.data_ptr() for name, parameter in ours.named_parameters()} == before
    ours.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not is_accelerated(loaded) and is_accelerated(ours)
    ids, _ = batch()
    torch.testing.assert_close(loaded.eval()(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_copy_computes_with_its_own_weights():
    ours = fastrlhf.accelerate(model_of(CONFIGS["llama"]))
    ids, _ = batch()
    before = ours(ids).logits
    clone = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.mul_(2)
    assert torch.equal(ours(ids).logits, before)
    assert not torch.allclose(clone(ids).logits, before)


@pytest.mark.parametrize("first", ["adapter", "accelerate"])
def test_adapters_work_on_either_side(first):
    config = LoraConfig(target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(2)
    adapted = get_peft_model(model_of(CONFIGS["llama"]), config)
    torch.manual_seed(2)
    model = model_of(CONFIGS["llama"])
    if first == "adapter":
        ours = fastrlhf.accelerate(get_peft_model(model, config))
    else:
        ours = get_peft_model(fastrlhf.accelerate(model), config)
    ours.load_state_dict(adapted.state_dict())
    ids, _ = batch()
    torch.testing.assert_close(ours.eval()(ids).logits, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    with ours.disable_adapter(), adapted.disable_adapter():
        torch.testing.assert_close(ours(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient():
    _, ours = pair("llama")
    ids, _ = batch()
    before = results(ours.train(), ids)
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    for name, value in results(ours, ids, use_cache=False).items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-7, msg=name)


def test_it_compiles():
    _, ours = pair("llama")
    ids, _ = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(ours, backend="aot_eager")
        torch.testing.assert_close(
            compiled(ids, use_cache=False).logits, ours(ids).logits, rtol=1e-4, atol=1e-5
        )


def test_a_family_that_is_not_known_gets_the_parts_found_in_it():
    config = Gemma2Config(**SHAPE, head_dim=16)
    plain = model_of(config)
    ids, _ = batch()
    with pytest.warns(
        UserWarning, match=r"does not know the family 'gemma2': 25 of its norms, MLPs and linear"
    ):
        ours = fastrlhf.accelerate(copy.deepcopy(plain))
    torch.testing.assert_close(ours(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_family_with_nothing_to_replace_stays_as_it_is():
    config = OPTConfig(
        vocab_size=61,
        hidden_size=48,
        ffn_dim=80,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=48,
    )
    plain = model_of(config)
    with pytest.warns(UserWarning, match="'opt'"):
        ours = fastrlhf.accelerate(copy.deepcopy(plain))
    ids, _ = batch()
    torch.testing.assert_close(ours(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


def test_what_is_no_hugging_face_model_is_refused():
    with pytest.raises(TypeError, match="model is a Linear, expected a Hugging Face model"):
        fastrlhf.accelerate(torch.nn.Linear(2, 2))
