from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import packed, products
from tests.support.precision import assert_as_good_as

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """No choice and no packed weight of other tests, both put back; the smallest product is worth a choice."""
    monkeypatch.setattr(products, "_WORTH_MEASURING", 1)
    table = products.export_table()
    products.clear_table()
    packed._kept.clear()
    yield
    products.clear_table()
    products.import_table(table)
    packed._kept.clear()
    packed.limit_packed(4 << 30)


@pytest.fixture
def always(monkeypatch):
    """Makes every choice fall on one provider."""
    return lambda provider: monkeypatch.setattr(products, "_fastest", lambda candidates: provider)


@pytest.mark.parametrize("provider", products.PROVIDERS)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", [(33, 17, 9), (64, 1, 5), (129, 31, 65), (300, 205, 40)], ids=str)
def test_each_provider_is_as_good_as_plain(always, provider, keep, shape):
    always(provider)
    rows, out, width = shape
    torch.manual_seed(0)
    x, weight, bias, grad = (
        torch.randn(*size) for size in ((rows, width), (out, width), (out,), (rows, out))
    )
    cases = {
        "forward": (
            products.forward(x, weight, bias, keep=keep),
            lambda x, w, b, g: torch.nn.functional.linear(x, w, b),
        ),
        "grad_input": (products.grad_input(grad, weight, keep=keep), lambda x, w, b, g: g @ w),
        "grad_weight": (products.grad_weight(grad, x), lambda x, w, b, g: g.T @ x),
    }
    for name, (actual, plain) in cases.items():
        tensors = x, weight, bias, grad
        assert_as_good_as(actual, plain(*tensors), plain(*(t.double() for t in tensors)), name=name)
    assert set(products.export_table().values()) == {provider}


def test_the_table_is_measured_once_a_shape_and_taken_over(monkeypatch):
    measured = []
    monkeypatch.setattr(products, "_fastest", lambda candidates: measured.append(1) or "onednn")
    weight = torch.randn(8, 4)
    for rows in (33, 40, 64):
        products.forward(torch.randn(rows, 4), weight, None)
    assert len(measured) == 1, "rows up to 64 share a choice"
    products.forward(torch.randn(65, 4), weight, None)
    assert len(measured) == 1, "and those up to twice as many, or half"
    products.forward(torch.randn(129, 4), weight, None)
    table = products.export_table()
    assert table == {
        "forward 64x8x4, kept, 1 threads": "onednn",
        "forward 256x8x4, kept, 1 threads": "onednn",
    }
    products.clear_table()
    products.import_table(table)
    products.forward(torch.randn(50, 4), weight, None)
    assert len(measured) == 2


def test_a_small_product_is_not_measured(monkeypatch):
    monkeypatch.setattr(products, "_WORTH_MEASURING", 40 * 8 * 4 + 1)
    monkeypatch.setattr(products, "_fastest", None)
    forward(torch.randn(40, 4), torch.randn(8, 4))
    assert products.export_table() == {}


def test_a_table_with_a_provider_that_there_is_not():
    with pytest.raises(ValueError, match="names the provider 'cublas' for forward"):
        products.import_table({"forward 64x8x4, kept, 1 threads": "cublas"})


def test_the_fastest_needs_a_lead(monkeypatch):
    seconds = {"torch": 1.0, "onednn": 0.97}
    clock = [0.0]
    monkeypatch.setattr(products.time, "perf_counter", lambda: clock[0])

    def candidate(name):
        def run():
            clock[0] += seconds[name]

        return run

    candidates = {name: candidate(name) for name in seconds}
    assert products._fastest(candidates) == "torch"
    seconds["onednn"] = 0.9
    assert products._fastest(candidates) == "onednn"


def forward(x, weight):
    return products.forward(x, weight, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: weight.data.mul_(2),
        lambda weight: weight.detach()[::2].mul_(2),
    ],
    ids=["in place", "through .data", "through a view"],
)
def test_a_weight_that_changed_is_packed_anew(always, change):
    always("onednn")
    x, weight = torch.randn(40, 64), torch.randn(96, 64)
    forward(x, weight)
    change(weight)
    torch.testing.assert_close(forward(x, weight), x @ weight.T)
    assert len(packed._kept) == 1


def test_an_update_by_an_optimizer_is_seen(always):
    always("onednn")
    x, weight = torch.randn(40, 64), torch.nn.Parameter(torch.randn(96, 64))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    for _ in range(3):
        y = kernels.linear(x, weight)
        torch.testing.assert_close(y, x @ weight.T)
        y.square().sum().backward()
        optimizer.step()


def test_a_new_weight_at_an_old_address_is_not_taken_for_it(always):
    always("onednn")
    x = torch.randn(40, 64)
    for _ in range(5):
        weight = torch.randn(96, 64)
        torch.testing.assert_close(forward(x, weight), x @ weight.T)
        del weight
    forward(x, torch.randn(96, 64))
    assert len(packed._kept) <= 2, "weights that are gone leave nothing behind"


def test_the_same_weight_is_packed_once_in_each_direction(always, monkeypatch):
    always("onednn")
    packs = []
    pack = packed._pack
    monkeypatch.setattr(packed, "_pack", lambda *args: packs.append(1) or pack(*args))
    x, weight, grad = torch.randn(40, 64), torch.randn(96, 64), torch.randn(40, 96)
    for view in (weight, weight.detach(), weight[:], torch.nn.Parameter(weight)):
        forward(x, view)
        products.grad_input(grad, view)
    assert len(packs) == 2
    assert packed.packed_bytes() == 2 * weight.nbytes


def test_packed_weights_stay_within_their_limit(always):
    always("onednn")
    x, weights = torch.randn(40, 64), [torch.randn(96, 64) for _ in range(4)]
    packed.limit_packed(2 * weights[0].nbytes)
    for weight in weights:
        torch.testing.assert_close(forward(x, weight), x @ weight.T)
    assert packed.packed_bytes() == 2 * weights[0].nbytes
    kept = list(packed._kept)
    for weight in weights:
        forward(x, weight)
    assert list(packed._kept) == kept, "the first ones stay"
    assert {key.split(", ")[1] for key in products.export_table()} == {"kept", "packed each time"}
    del weight, weights[0]
    forward(x, weights[-1])
    assert packed.packed_bytes() == 2 * weights[0].nbytes, "who came later gets the place of one that is gone"
    assert list(packed._kept) != kept
    packed.limit_packed(0)
    assert packed.packed_bytes() == 0
    torch.testing.assert_close(forward(x, weights[0]), x @ weights[0].T)
    assert packed.packed_bytes() == 0


def test_weights_made_in_inference_mode(always):
    always("onednn")
    with torch.inference_mode():
        x, weight = torch.randn(40, 64), torch.randn(96, 64)
        forward(x, weight)
        weight.mul_(2)
        torch.testing.assert_close(forward(x, weight), x @ weight.T)
