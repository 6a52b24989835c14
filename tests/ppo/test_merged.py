"""A LoRA policy is written merged: layer by layer into transformers' files, or whole where that cannot be."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fastrlhf.ppo import merged
from tests.support.tiny import tiny_llama

IDS = torch.arange(14).view(2, 7)


def adapted(dtype=torch.float32, tied=False, targets=("q_proj", "down_proj")):
    model = tiny_llama(tie_word_embeddings=tied, attention_bias=True).to(dtype)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False, lora_alpha=4)
    return get_peft_model(model, config).eval()


def saved(model, folder, monkeypatch):
    """How often transformers wrote the model, and the model that was written."""
    writes, base = [], model.get_base_model()
    write = base.save_pretrained
    monkeypatch.setattr(
        base, "save_pretrained", lambda *args, **named: writes.append(1) or write(*args, **named)
    )
    merged.save_merged(model, folder, "5KB")
    assert len(list(folder.glob("model*.safetensors"))) > 1
    return len(writes), AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_place(tmp_path, monkeypatch, dtype):
    model = adapted(dtype)
    names, write_over = [], merged._write_over
    monkeypatch.setattr(
        merged, "_write_over", lambda place, tensor: names.append(place) or write_over(place, tensor)
    )
    writes, loaded = saved(model, tmp_path, monkeypatch)
    assert writes == 1
    # two maps in each of two layers; q_proj has a bias
    assert len(set(names)) == 6
    expected = model.merge_and_unload()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("reason", ["a layer with two names", "another name in the file"])
def test_whole(tmp_path, monkeypatch, reason):
    if reason == "another name in the file":
        monkeypatch.setattr(merged, "_places", lambda folder: {})
        model, expected_writes = adapted(), 2
    else:
        model, expected_writes = adapted(tied=True, targets=["embed_tokens"]), 1
    with torch.no_grad():
        expected = model.get_base_model().model(input_ids=IDS).last_hidden_state
    writes, loaded = saved(model, tmp_path, monkeypatch)
    assert writes == expected_writes
    torch.testing.assert_close(loaded.model(input_ids=IDS).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
