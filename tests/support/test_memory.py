from __future__ import annotations

import torch

from tests.support.memory import allocations

MIB = 2**20


def test_counts_what_is_alive_at_once():
    def function():
        kept = torch.empty(MIB, dtype=torch.uint8)
        for _ in range(3):
            temporary = torch.empty(2 * MIB, dtype=torch.uint8)
            del temporary
        return kept

    used = allocations(function)
    assert used.largest == 2 * MIB
    assert used.peak == 3 * MIB
    assert used.kept == MIB


def test_counts_nothing_for_views():
    tensor = torch.empty(MIB, dtype=torch.uint8)
    assert allocations(lambda: tensor.view(2, -1).t()) == (0, 0, 0)
