"""Checkpoints read tensor by tensor: the values of `from_pretrained`, in the format and the tier asked for."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
from math import prod

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

import fastrlhf
from fastrlhf.memory.tensor_files import Value, write_shards
from fastrlhf.models.quantized import QuantizedLinear, quantize_linears
from tests.support import tiny
from tests.support.offloaded import adamw

TOKENS = torch.arange(9)[None]


def saved(folder, model, **options):
    model.save_pretrained(folder, **options)
    return model


def wide_llama(**overrides):
    return tiny.tiny_llama(hidden_size=64, intermediate_size=128, **overrides)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_values_and_ties_are_those_that_were_saved(tied, lazy, tmp_path):
    model = saved(tmp_path, wide_llama(tie_word_embeddings=tied), max_shard_size="20kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = fastrlhf.load(tmp_path, lazy=lazy)
    if lazy:
        assert loaded.lm_head.weight.is_meta and not loaded.model.norm.weight.is_meta
        fastrlhf.offload(loaded, device_memory="200kB", host_memory="1MB")
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert not loaded.training
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert torch.equal(loaded(TOKENS).logits, model.eval()(TOKENS).logits)


@pytest.mark.parametrize("make", [tiny.tiny_gpt2, tiny.tiny_llama_classifier])
def test_other_families_and_heads(make, tmp_path):
    model = saved(tmp_path, make()).eval()
    auto_class = AutoModelForSequenceClassification if hasattr(model, "score") else None
    loaded = fastrlhf.load(tmp_path, auto_class=auto_class)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_the_dtype_of_the_checkpoint_or_another(tmp_path):
    model = saved(tmp_path, wide_llama().bfloat16())
    assert fastrlhf.load(tmp_path).lm_head.weight.dtype == torch.bfloat16
    for dtype in ("float32", torch.float32):
        loaded = fastrlhf.load(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_in_bits_it_is_what_quantising_the_whole_model_gives(format, lazy, tmp_path):
    model = saved(tmp_path, wide_llama(attention_bias=True)).eval()
    quantize_linears(model, format)
    loaded = fastrlhf.load(tmp_path, weights=format, lazy=lazy)
    if lazy:
        manager = fastrlhf.offload(loaded, device_memory="200kB", host_memory="1MB")
        assert manager.device_meter.moved_in == 0, "straight into its tier"
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_query_key_and_value_lie_side_by_side_in_their_chunk(tmp_path):
    saved(tmp_path, wide_llama())
    for weights in (None, "nf4", "int8"):
        loaded = fastrlhf.load(tmp_path, weights=weights, lazy=True)
        manager = fastrlhf.offload(loaded, host_memory="1MB", chunk_size="1MB")
        slots = [slot for chunk in manager.chunks for slot in chunk.layout.slots]
        places = {slot.name: slot for slot in slots}
        for parts in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ):
            of_layer = [places[f"model.layers.1.{part}.weight"] for part in parts]
            for one, next_one in itertools.pairwise(of_layer):
                assert next_one.offset == one.offset + one.numel


def test_a_lazily_loaded_model_trains_to_the_bits_of_one_that_was_there(tmp_path):
    saved(tmp_path, wide_llama())

    def trained(model, **options):
        optimizer = fastrlhf.offload(model, adamw(model), **options)
        for _ in range(3):
            model(TOKENS, labels=TOKENS).loss.backward()
            optimizer.clip_grad_norm_(1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {name: value.clone() for name, value in model.state_dict().items()}

    expected = trained(LlamaForCausalLM.from_pretrained(tmp_path))
    found = trained(fastrlhf.load(tmp_path, lazy=True), device_memory="400kB", disk=tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder with config.json"):
        fastrlhf.load(tmp_path / "nowhere")
    saved(tmp_path, wide_llama())
    with pytest.raises(ValueError, match="weights is 'nf5'"):
        fastrlhf.load(tmp_path, weights="nf5")
    with pytest.raises(ValueError, match=r"has no score.weight: it is a checkpoint of another model"):
        fastrlhf.load(tmp_path, auto_class=AutoModelForSequenceClassification)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"is \[128, 64\] in .* makes it \[96, 64\]"):
        fastrlhf.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.warns(UserWarning, match=r"9 tensors in .* are not of this model"):
        fastrlhf.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        fastrlhf.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="no safetensors files"):
        fastrlhf.load(tmp_path)


PROGRAM = """
    import sys
    import fastrlhf.models.quantized, torch, transformers
    from fastrlhf.memory.buffers import return_large_allocations
    from fastrlhf.memory.resident import peak_resident_mb
    import fastrlhf
    torch.set_num_threads(1)
    return_large_allocations()
    fastrlhf.load(sys.argv[1], weights="nf4")  # what Python imports at the first time
    before = peak_resident_mb()
    model = fastrlhf.load(sys.argv[2], weights="nf4")
    held = sum(p.nbytes for p in model.parameters()) / 1e6
    print(peak_resident_mb() - before, held)
"""


def test_nf4_is_never_held_in_16_bits_as_the_operating_system_counts(tmp_path):
    """50 million parameters: 94 MB in the file, 25 MB in NF4; beside these one weight (2 MB) and its codes."""
    saved(tmp_path / "tiny", wide_llama())
    config = tiny.llama_config(hidden_size=512, intermediate_size=2048, num_hidden_layers=12)
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "wide")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    values = {
        name: Value(p.dtype, tuple(p.shape), lambda p=p: torch.randn(p.shape, dtype=p.dtype))
        for name, p in model.named_parameters()
    }
    write_shards(tmp_path / "wide", values, 20_000_000)
    size = sum(file.stat().st_size for file in (tmp_path / "wide").glob("*.safetensors")) / 1e6
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "tiny"), str(tmp_path / "wide")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown, held = map(float, done.stdout.split())
    assert size > 90 and held < 30
    assert grown < held + 12


def test_eight_billion_parameters_in_nf4_by_arithmetic():
    """Llama-3-8B: what it holds once loaded, and beside it the largest weight in float32 and in the making."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    whole = sum(p.nbytes for p in model.parameters())
    largest = max(p.nbytes for name, p in model.model.layers.named_parameters())
    quantize_linears(model, "nf4")
    held = sum(p.nbytes for p in model.parameters())
    in_bits = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    numbers = sum(prod(m.quantized.shape) for m in in_bits)
    assert sum(m.quantized.nbytes for m in in_bits) / numbers == pytest.approx(0.516, abs=0.001)
    assert whole == pytest.approx(16.06e9, rel=0.001)
    assert held + 3 * largest < 6.5e9
