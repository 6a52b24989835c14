"""Rollouts of a model whose weights are elsewhere: on our kernels, to the bits of one that is all there."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

import fastrlhf
from fastrlhf.device import simulated
from fastrlhf.generation import run
from fastrlhf.memory.placement import StaticPlacement
from fastrlhf.models.quantized import quantize_linears
from tests.support import tiny

# more than the rows that a thin product takes at once, and more than are in the batch
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]] * 12
pytestmark = pytest.mark.filterwarnings("error:.*generates with its own forward")


def rollout(model, **options):
    options = {"max_new_tokens": 8, "seed": 1, "stop_token_ids": [], **options}
    return [(row.tokens, row.logprobs) for row in fastrlhf.generate(model, PROMPTS, **options)]


def large_weights():
    """Ten times the usual: a bit more or less anywhere then reaches the log-probabilities."""
    model = tiny.tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() == 2 else 1)
    return model


def adapted():
    torch.manual_seed(0)
    return get_peft_model(tiny.tiny_llama(), LoraConfig(target_modules="all-linear", init_lora_weights=False))


def in_bits():
    model = tiny.tiny_llama(hidden_size=64, intermediate_size=128)
    quantize_linears(model, "nf4")
    return model


# what a layer needs, and a little more
LITTLE = {
    tiny.tiny_llama: 12_000,
    large_weights: 12_000,
    tiny.tiny_gpt2: 20_000,
    adapted: 20_000,
    in_bits: 44_000,
}


@pytest.mark.parametrize("make", LITTLE, ids=lambda make: make.__name__)
def test_layers_stream_through_little_memory(make):
    expected = rollout(make(), batch_size=34)
    model = make()
    manager = fastrlhf.offload(model, device_memory=LITTLE[make], host_memory="1MB")
    assert not manager.fits(model)
    assert rollout(model, batch_size=34) == expected
    meter = manager.device_meter
    assert meter.peak <= meter.capacity < meter.moved_in
    assert not any(chunk.parameters.pins for chunk in manager.chunks)


def test_a_layer_is_brought_once_a_step_for_all_rows():
    """What moves does not depend on how many rows there are."""
    moved = []
    for prompts in ([[1, 2]], [[1, 2]] * 30):
        model = tiny.tiny_llama()
        placement = StaticPlacement()
        manager = fastrlhf.offload(model, device_memory="20kB", host_memory="1MB", placement=placement)
        fastrlhf.generate(model, prompts, max_new_tokens=1, stop_token_ids=[])
        first = manager.device_meter.moved_in
        fastrlhf.generate(model, prompts, max_new_tokens=9, stop_token_ids=[])
        moved.append(manager.device_meter.moved_in - first)
    assert moved[0] == moved[1]


def test_a_policy_that_fits_is_brought_and_kept():
    expected = rollout(tiny.tiny_llama())
    policy, reference = tiny.tiny_llama(), tiny.tiny_llama(2)
    size = sum(parameter.nbytes for parameter in policy.parameters())
    options = {"device_memory": size * 5 // 4, "host_memory": "1MB", "chunk_size": 2000}
    manager = fastrlhf.offload([policy, reference], **options)
    assert manager.fits(policy)
    with torch.no_grad():
        reference(torch.arange(6)[None])
    manager.device_meter.reset()
    assert rollout(policy) == expected
    # the first time the description is tried out, which brings nothing more
    assert manager.device_meter.moved_in <= size * 5 // 4
    manager.device_meter.reset()
    assert rollout(policy) == expected
    assert manager.device_meter.moved_in == 0


@pytest.mark.parametrize("memory", [12_000, 1_000_000])
def test_on_a_device_whose_copies_land_late(memory):
    expected = rollout(tiny.tiny_llama())
    with simulated.registered():
        model = tiny.tiny_llama()
        manager = fastrlhf.offload(model, device_memory=memory, host_memory="1MB", device="sim")
        assert manager.fits(model) == (memory == 1_000_000)
        found = rollout(model)
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        del manager


def test_copies_in_8_bits_are_made_layer_by_layer():
    expected = rollout(tiny.tiny_llama(), weights="int8")
    model = tiny.tiny_llama()
    fastrlhf.offload(model, device_memory=12_000, host_memory="1MB")
    found = rollout(model, weights="int8")
    assert found == expected


def test_a_family_that_is_not_described_generates_with_its_own_forward():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=32, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=16,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    run._say_once.cache_clear()
    with pytest.warns(UserWarning, match="its own forward"):
        expected = rollout(model)
    manager = fastrlhf.offload(model, device_memory=15_000, host_memory="1MB")
    assert not manager.fits(model)
    assert [tokens for tokens, _ in rollout(model)] == [tokens for tokens, _ in expected]
