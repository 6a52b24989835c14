"""Memory of the host that is pinned for the simulated device."""

from __future__ import annotations

import pytest
import torch


def test_pinning_copies_once(device):
    x = torch.arange(3.0)
    pinned = x.pin_memory()
    assert (x.is_pinned(), pinned.is_pinned(), pinned[1:].is_pinned()) == (False, True, True)
    assert pinned.tolist() == [0, 1, 2] and pinned.data_ptr() != x.data_ptr()
    assert pinned.pin_memory() is pinned


def test_bytes_are_counted_while_a_tensor_or_a_view_holds_them(device):
    kept = torch.zeros(4, pin_memory=True)[:1]
    other = torch.empty(2, dtype=torch.float64, pin_memory=True)
    assert device.pinned.live == 16 + 16
    del other
    assert (device.pinned.live, device.pinned.peak) == (16, 32)
    del kept
    assert device.pinned.live == 0


def test_the_address_of_pinned_memory_is_not_taken_for_pinned_afterwards(device):
    torch.zeros(4, pin_memory=True)
    assert not any(torch.zeros(4).is_pinned() for _ in range(50))
    assert device.pinned.live == 0


def test_a_copy_to_the_host_that_does_not_block_makes_pinned_memory(device):
    x = torch.ones(3, device="sim")
    assert x.to("cpu", non_blocking=True).is_pinned()
    assert not x.to("cpu").is_pinned()


def test_only_memory_of_the_host_is_pinned(device):
    x = torch.ones(3, device="sim")
    assert not x.is_pinned()
    with pytest.raises(RuntimeError, match="cannot pin a tensor on sim:0"):
        x.pin_memory()
