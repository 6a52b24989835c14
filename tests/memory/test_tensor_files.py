"""Safetensors files in parts: what safetensors itself reads and writes, a tensor at a time."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fastrlhf.memory import tensor_files
from fastrlhf.memory.tensor_files import (
    Value,
    load_stored,
    read_stored,
    stored_tensors,
    write_file,
    write_shards,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4), (4, 0)]


def tensor(shape, dtype):
    return (torch.randn(shape) * 50).to(dtype)


def values(tensors):
    return {
        name: Value(each.dtype, tuple(each.shape), lambda each=each: each) for name, each in tensors.items()
    }


@settings(deadline=None, max_examples=40)
@given(shapes=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES)), max_size=6))
def test_safetensors_reads_what_is_written_and_the_other_way_round(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tensors = {f"t{number}": tensor(*each) for number, each in enumerate(shapes)}
    write_file(folder / "ours.safetensors", values(tensors))
    save_file(tensors, folder / "theirs.safetensors")
    for path in (folder / "ours.safetensors", folder / "theirs.safetensors"):
        found = {name: load_stored(stored) for name, stored in stored_tensors([path]).items()}
        for read in (load_file(path), found):
            assert read.keys() == tensors.keys()
            for name, each in tensors.items():
                assert read[name].dtype == each.dtype and torch.equal(read[name], each)


def test_a_cast_goes_through_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "PART", 100)
    for shape in ((200,), (30, 7), (5, 6, 7), (3, 100)):
        whole = torch.randn(shape)
        save_file({"x": whole}, tmp_path / "x.safetensors")
        stored = stored_tensors([tmp_path / "x.safetensors"])["x"]
        target = torch.empty(shape, dtype=torch.bfloat16)
        read_stored(stored, target)
        assert torch.equal(target, whole.bfloat16())
    across = torch.empty(100, 3).t()
    read_stored(stored, across)
    assert torch.equal(across, whole)
    with pytest.raises(ValueError, match=r"is \[3, 100\], expected \[2\]"):
        read_stored(stored, torch.empty(2))


def test_one_tensor_is_held_at_a_time(tmp_path):
    alive = []

    def read(number):
        gc.collect()
        assert not any(reference() is not None for reference in alive)
        made = torch.full((1000,), float(number))
        alive.append(weakref.ref(made))
        return made

    each = {f"t{n}": Value(torch.float32, (1000,), lambda n=n: read(n)) for n in range(5)}
    write_file(tmp_path / "x.safetensors", each)
    found = load_file(tmp_path / "x.safetensors")
    assert [int(found[name][0]) for name in sorted(found)] == [*range(5)]


def test_shards_and_their_index(tmp_path):
    tensors = {name: torch.randn(10) for name in "abcde"}
    write_shards(tmp_path, values(tensors), 80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    assert index["weight_map"]["e"] == "model-00003-of-00003.safetensors"
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    (tmp_path / "one").mkdir()
    write_shards(tmp_path / "one", values(tensors), 200)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]


def test_what_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(100)}, path)
    whole = path.read_bytes()
    for size, message in ((len(whole) - 1, "ends before x"), (20, "not a whole"), (0, "not a whole")):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=message):
            stored_tensors([path])
    path.write_bytes(whole)
    stored = stored_tensors([path])["x"]
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="8 bytes early"):
        load_stored(stored)
    with pytest.raises(ValueError, match=r"x is torch.float64 \[2\], expected"):
        write_file(path, {"x": Value(torch.float32, (2,), lambda: torch.zeros(2, dtype=torch.float64))})
