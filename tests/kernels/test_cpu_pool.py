"""The pool of large results: whose memory comes back when, and how much lies idle."""

from __future__ import annotations

import threading

import pytest
import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu import pool

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def nothing_idle():
    pool.trim()
    yield
    pool.trim()


def megabytes(count: float) -> torch.Tensor:
    return pool.empty((int(count * MEGABYTE / 4),))


def idle() -> int:
    return pool.pool_bytes()[1]


def test_a_tensor_is_an_ordinary_one():
    tensor = pool.empty((3, 400, 500))
    assert tensor.shape == (3, 400, 500) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor.device.type == "cpu" and tensor.data_ptr() % 64 == 0
    tensor.fill_(2.0).requires_grad_()
    (tensor * tensor).sum().backward()
    assert tensor.grad.eq(4).all()


def test_memory_comes_back_with_the_last_view_and_goes_to_the_next_of_about_its_size():
    tensor = megabytes(4)
    address, view = tensor.data_ptr(), tensor[5:]
    del tensor
    assert idle() == 0
    del view
    assert idle() == 4 * MEGABYTE
    again = megabytes(3.9)
    assert again.data_ptr() == address and idle() == 0
    other = megabytes(4)
    assert other.data_ptr() != address


def test_a_tensor_freed_in_another_thread():
    held = [megabytes(1)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert idle() == MEGABYTE


def test_what_lies_idle_is_bounded_by_what_was_held_at_once():
    for count in range(1, 60):
        tensor = megabytes(count)
        taken = pool.pool_bytes()[0]
        del tensor
    assert idle() <= taken + taken // 8
    kept = [megabytes(10) for _ in range(5)]
    assert sum(pool.pool_bytes()) <= 60 * MEGABYTE * 9 / 8 + 10 * MEGABYTE
    del kept


def test_the_longest_idle_goes_first():
    first, second = megabytes(8), megabytes(9)
    address = second.data_ptr()
    del first, second
    third = megabytes(10)
    assert idle() == 9 * MEGABYTE
    assert megabytes(9).data_ptr() == address
    del third


def test_trim_returns_what_is_idle_and_leaves_what_is_held():
    kept, gone = megabytes(2).fill_(3), megabytes(5)
    del gone
    pool.trim()
    assert pool.pool_bytes()[1] == 0 and kept.eq(3).all()


def test_small_tensors_are_pytorch_s():
    before = pool.pool_bytes()
    tensors = [pool.empty((0, 5)), pool.empty((10, 10)), pool.empty((pool.SMALLEST // 4 - 1,))]
    assert pool.pool_bytes() == before
    del tensors


def test_a_capsule_that_nobody_takes_gives_its_memory_back():
    native.module("_cpu").pool_tensor((MEGABYTE,))
    assert idle() == 4 * MEGABYTE


def test_more_than_there_is():
    with pytest.raises(MemoryError):
        pool.empty((1 << 50,))
    assert idle() == 0
