"""What PyTorch's operations read, write and compute, worked out by hand (float32: 4 bytes, int64: 8)."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.device.observe import Cost

# Each is called with x (3, 4), index [1, 0], bias (3) and rows (2, 4).
CASES = {
    "read all, written all": (lambda x, *_: x + x, Cost(2 * 48, 48)),
    "in place": (lambda x, *_: x.mul_(2.0), Cost(48, 48)),
    "an expanded row is read once": (lambda x, *_: x * x[0].expand(3, 4), Cost(48 + 16, 48)),
    "filled, not read": (lambda x, *_: x.zero_(), Cost(0, 48)),
    "only the shape is read": (lambda x, *_: torch.zeros_like(x), Cost(0, 48)),
    "out is not read": (lambda x, *_: torch.exp(x, out=torch.empty_like(x)), Cost(48, 48)),
    "rows are looked up": (lambda x, i, *_: torch.nn.functional.embedding(i, x), Cost(16 + 32, 32)),
    "rows are indexed": (lambda x, i, *_: x[i], Cost(16 + 32, 32)),
    "rows are selected": (lambda x, i, *_: x.index_select(0, i), Cost(16 + 32, 32)),
    "elements are gathered": (lambda x, i, *_: x.gather(1, i[None]), Cost(16 + 8, 8)),
    "rows are put": (lambda x, i, bias, rows: x.index_put_((i,), rows), Cost(16 + 32, 32)),
    "elements are scattered": (lambda x, i, *_: x.scatter_(1, i[None], 0.0), Cost(16, 8)),
    "a copy within the device": (lambda x, *_: x.double(), Cost(48, 96)),
    "a product": (lambda x, *_: x @ x.t(), Cost(96, 36, 2 * 3 * 3 * 4)),
    "a product and a sum": (lambda x, i, b, _: torch.addmm(b, x, x.t()), Cost(12 + 96, 36, 2 * 3 * 3 * 4)),
    "nothing at all": (lambda x, *_: x[:0] + x[:0], Cost(0, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cost(device, case):
    use, expected = CASES[case]
    x, bias, rows = (torch.ones(shape, device="sim") for shape in ((3, 4), (3,), (2, 4)))
    index = torch.tensor([1, 0], device="sim")
    device.reset()
    use(x, index, bias, rows)
    assert device.launches.total() == 1
    assert device.cost == expected


def test_attention_counts_its_two_products(device):
    query = torch.ones(1, 2, 8, 4, device="sim")
    device.reset()
    torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert device.cost.flops == 2 * (2 * 2 * 8 * 8 * 4)
