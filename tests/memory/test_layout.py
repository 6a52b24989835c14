"""Which parameters lie where: order, alignment, neighbours, and the chunk size that wastes least."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fastrlhf.memory.layout import ALIGNMENT, Wanted, lay_out, search_chunk_bytes
from fastrlhf.memory.units import find_units
from tests.support.offloaded import net
from tests.support.tiny import llama_config

DTYPES = (torch.float32, torch.bfloat16)


def wanted(sizes, trainable=True, dtype=torch.float32, unit=0):
    return [Wanted(f"w{i}", (size,), dtype, trainable, unit) for i, size in enumerate(sizes)]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 3))),
    st.integers(ALIGNMENT, 2000),
)
def test_every_parameter_has_one_aligned_place_of_its_own(described, chunk_bytes):
    parameters = [Wanted(f"w{i}", (numel,), *rest) for i, (numel, *rest) in enumerate(described)]
    layouts = lay_out(parameters, chunk_bytes)
    assert [layout.index for layout in layouts] == list(range(len(layouts)))
    by_name = {each.name: each for each in parameters}
    placed = [slot.name for layout in layouts for slot in layout.slots]
    assert sorted(placed) == sorted(by_name)
    for layout in layouts:
        end = 0
        for slot in layout.slots:
            parameter = by_name[slot.name]
            assert (parameter.dtype, parameter.trainable) == (layout.dtype, layout.trainable)
            assert slot.offset >= end and slot.offset * layout.dtype.itemsize % ALIGNMENT == 0
            end = slot.offset + slot.numel
        assert end <= layout.numel
        assert layout.nbytes <= chunk_bytes or len(layout.slots) == 1
        # in the order given
        order = [int(slot.name[1:]) for slot in layout.slots]
        assert order == sorted(order)


def test_a_parameter_that_is_too_large_gets_a_chunk_of_its_own():
    layouts = lay_out(wanted([16, 1000, 16]), 200)
    assert [[slot.numel for slot in layout.slots] for layout in layouts] == [[16], [1000], [16]]


def test_chunks_end_where_layers_do():
    """Layers of 96 kB, an embedding and a norm: a chunk of a layer's size brings nothing that is not its own."""
    layer = [4096, 4096, 16384]
    parameters = [Wanted("embed", (50_000,), torch.float32, True, 0)]
    for unit in range(1, 9):
        parameters += [Wanted(f"{unit}.{i}", (n,), torch.float32, True, unit) for i, n in enumerate(layer)]
    size = search_chunk_bytes(parameters, largest=100_000)
    chunks = [{slot.name.split(".")[0] for slot in layout.slots} for layout in lay_out(parameters, size)]
    assert chunks == [{"embed"}, *({str(unit)} for unit in range(1, 9))]


def test_small_layers_share_a_chunk():
    """A copy costs about as much as 256 kB more: a hundred of 1 kB would not pay."""
    parameters = [Wanted(str(unit), (256,), torch.float32, True, unit) for unit in range(100)]
    assert len(lay_out(parameters, search_chunk_bytes(parameters))) == 1
    assert search_chunk_bytes([]) == ALIGNMENT


def test_query_key_and_value_lie_side_by_side_and_so_do_gate_and_up():
    config = Qwen2Config(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    units = find_units(Qwen2ForCausalLM(config))
    layer = next(unit for unit in units if unit.name == "model.layers.1")
    parameters = [Wanted(name, tuple(p.shape), p.dtype, True, 0) for name, p in layer.parameters]
    (layout,) = lay_out(parameters, 10**9)
    places = {slot.name.removeprefix("model.layers.1."): slot for slot in layout.slots}
    for names in (
        ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
        ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
        ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    ):
        for first, second in pairwise(names):
            assert places[first].offset + places[first].numel == places[second].offset


def test_the_units_of_a_hugging_face_model_are_its_layers_and_what_is_beside_them():
    model = LlamaForCausalLM(llama_config(tie_word_embeddings=True))
    names = [unit.name for unit in find_units(model)]
    assert names == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2))
    prefix = "base_model.model."
    assert [unit.name for unit in find_units(adapted)] == [prefix + name for name in names]


def test_a_module_around_units_that_has_parameters_is_one_too():
    units = {unit.name: unit for unit in find_units(net())}
    assert list(units) == ["", "embed", *(f"layers.{i}" for i in range(4)), "unused", "norm", "head"]
    assert [name for name, _ in units[""].parameters] == ["scale"]
    assert units[""].inside == set(units) - {""}


def test_the_children_of_a_model_without_blocks_are_its_units():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    assert [unit.name for unit in find_units(Plain(), "model 0")] == ["model 0.first", "model 0.second"]
    assert [unit.name for unit in find_units(nn.Linear(2, 2))] == [""]
    shared = nn.Linear(2, 2)
    assert [unit.name for unit in find_units(nn.Sequential(shared, nn.ReLU(), shared))] == ["0"]
