"""The instrument itself: each check catches a kernel that is wrong on purpose, and lets a right one be."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.triton import interpreted
from tests.support.poison import poisoned_memory

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
if not interpreted():
    pytest.skip("kernels run on the GPU here", allow_module_level=True)

from tests.support import triton_interpreter  # noqa: E402
from tests.support.triton_bounds import OutOfBounds  # noqa: E402

triton_interpreter.install()


@triton.jit
def copy_kernel(source, target, count, row_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    kept = offsets < count
    values = tl.load(source + row * row_stride + offsets, mask=kept, other=0.0)
    tl.store(target + row * BLOCK + offsets, values, mask=kept)


@triton.jit
def add_to_kernel(source, target, count, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.atomic_add(target + offsets, tl.load(source + offsets), mask=offsets < count)


@triton.jit
def by_address_kernel(source, target, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    address = source.to(tl.int64) + 4 * offsets
    tl.store(target + offsets, tl.load(address.to(tl.pointer_type(tl.float32))))


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, target, operation: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)
    if operation == "add":
        result = x + y
    elif operation == "subtract":
        result = x - y
    elif operation == "multiply":
        result = x * y
    elif operation == "negate":
        result = -x
    elif operation == "absolute":
        result = tl.abs(x)
    elif operation == "maximum":
        result = tl.maximum(x, y)
    elif operation == "clamp":
        result = tl.clamp(x, -y, y)
    elif operation == "fused":
        result = tl.fma(x, y, x)
    elif operation == "select":
        result = tl.where(x < y, x, y)
    elif operation == "constant":
        result = x * 0.3
    tl.store(target + offsets, result)


@triton.jit
def product_kernel(a_ptr, b_ptr, target, SIZE: tl.constexpr):
    rows = tl.arange(0, SIZE)
    square = rows[:, None] * SIZE + rows[None, :]
    result = tl.dot(tl.load(a_ptr + square), tl.load(b_ptr + square), input_precision="ieee")
    tl.store(target + square, result)


@triton.jit
def larger_by_magnitude(x, y):
    return tl.where(tl.abs(x) >= tl.abs(y), x, y)


@triton.jit
def times(x, y):
    return x * y


@triton.jit
def fold_kernel(source, target, operation: tl.constexpr, BLOCK: tl.constexpr):
    values = tl.load(source + tl.arange(0, BLOCK))
    if operation == "best":
        result, _ = tl.max(values, axis=0, return_indices=True)
    elif operation == "sum":
        result = tl.sum(values, axis=0)
    elif operation == "max":
        result = tl.max(values, axis=0)
    elif operation == "reduce":
        result = tl.reduce(values, 0, larger_by_magnitude)
    if operation == "cumsum":
        tl.store(target + tl.arange(0, BLOCK), tl.cumsum(values, axis=0))
    elif operation == "scan":
        tl.store(target + tl.arange(0, BLOCK), tl.associative_scan(values, 0, times))
    else:
        tl.store(target, result)


@triton.jit
def apply_in_turn(x_scale, x_add, y_scale, y_add):
    return x_scale * y_scale, x_add * y_scale + y_add


@triton.jit
def affine_kernel(
    scales, adds, scanned, reduced, REVERSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    maps = (tl.load(scales + at), tl.load(adds + at))
    _, sums = tl.associative_scan(maps, 1, apply_in_turn, reverse=REVERSE)
    tl.store(scanned + at, sums)
    _, totals = tl.reduce(maps, 0, apply_in_turn)
    tl.store(reduced + tl.arange(0, COLUMNS), totals)


@triton.jit
def cast_kernel(source, target, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(target + offsets, tl.load(source + offsets))


def launch(kernel, *args, programs=1, **meta):
    launch_triton(kernel, (programs,), torch.device("cpu"), *args, **meta)


def normal(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class TestBounds:
    def test_what_is_within_passes(self):
        source, target = torch.arange(10.0).view(2, 5), torch.zeros(2, 8)
        launch(copy_kernel, source, target, 5, 5, programs=2, BLOCK=8)
        assert torch.equal(target[:, :5], source)

    def test_one_past_the_end(self):
        memory = torch.zeros(64)
        with pytest.raises(
            OutOfBounds,
            match=r"^copy_kernel: load outside of float32\[2, 5\] in program \(1, 0, 0\), lanes \(5,\)$",
        ):
            launch(copy_kernel, memory[:10].view(2, 5), torch.zeros(2, 8), 6, 5, programs=2, BLOCK=8)

    def test_a_store_past_the_end(self):
        with pytest.raises(
            OutOfBounds, match=r"store outside of float32\[5\] .* lanes \(5,\), \(6,\), \(7,\)$"
        ):
            launch(copy_kernel, torch.zeros(8), torch.zeros(8)[:5], 8, 8, BLOCK=8)

    def test_an_atomic_past_the_end(self):
        with pytest.raises(OutOfBounds, match=r"^add_to_kernel: atomic outside of float32\[5\]"):
            launch(add_to_kernel, torch.zeros(8), torch.zeros(5), 6, BLOCK=8)

    def test_the_neighbour_of_a_view(self):
        columns = torch.zeros(2, 8)[:, :5]  # its sixth column is a number, but no number of its
        launch(copy_kernel, columns, torch.zeros(2, 8), 5, 8, programs=2, BLOCK=8)
        with pytest.raises(
            OutOfBounds, match=r"load outside of float32\[2, 5\] in program \(0, 0, 0\), lanes \(5,\)"
        ):
            launch(copy_kernel, columns, torch.zeros(2, 8), 6, 8, programs=2, BLOCK=8)

    def test_another_tensor_of_the_same_launch(self):
        memory = torch.zeros(32)
        with pytest.raises(OutOfBounds, match="load outside"):
            launch(copy_kernel, memory[:8], memory[8:24].view(2, 8), 8, 8, programs=2, BLOCK=8)

    def test_every_program_is_checked_under_its_own_number(self):
        with pytest.raises(OutOfBounds, match=r"in program \(2, 0, 0\)"):
            launch(copy_kernel, torch.zeros(2, 8), torch.zeros(3, 8), 8, 8, programs=3, BLOCK=8)

    def test_an_empty_tensor_has_nothing_to_read(self):
        with pytest.raises(OutOfBounds, match=r"float32\[0\]"):
            launch(copy_kernel, torch.zeros(0), torch.zeros(8), 1, 1, BLOCK=8)

    def test_overlapping_and_expanded_views(self):
        windows = torch.arange(12.0).as_strided((5, 8), (1, 1))
        launch(copy_kernel, windows, torch.zeros(5, 8), 8, 1, programs=5, BLOCK=8)
        with pytest.raises(OutOfBounds):
            launch(copy_kernel, windows, torch.zeros(6, 8), 8, 1, programs=6, BLOCK=8)
        launch(copy_kernel, torch.zeros(8).expand(5, 8), torch.zeros(5, 8), 8, 0, programs=5, BLOCK=8)

    def test_an_address_by_arithmetic_may_touch_what_was_passed_and_nothing_else(self):
        target = torch.zeros(8)
        launch(by_address_kernel, torch.arange(8.0), target, BLOCK=8)
        assert target.tolist() == list(range(8))
        with pytest.raises(OutOfBounds, match=r"outside of float32\[3\] and float32\[8\]"):
            launch(by_address_kernel, torch.zeros(1 << 16)[-3:], target, BLOCK=8)


class TestBfloat16:
    @pytest.mark.parametrize(
        ("operation", "exact"),
        {
            "add": lambda x, y: x + y,
            "subtract": lambda x, y: x - y,
            "multiply": lambda x, y: x * y,
            "negate": lambda x, y: -x,
            "absolute": lambda x, y: x.abs(),
            "maximum": torch.maximum,
            "clamp": lambda x, y: x.clamp(-y, y),
            "fused": lambda x, y: x * y + x,
            "select": torch.minimum,
            "constant": lambda x, y: x * torch.tensor(0.3).bfloat16().double(),
        }.items(),
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_arithmetic_is_rounded_to_the_nearest(self, operation, exact):
        x, y, target = normal(256), normal(256, seed=1).abs(), normal(256, seed=2)
        launch(arithmetic_kernel, x, y, target, operation=operation, BLOCK=256)
        assert torch.equal(target, exact(x.double(), y.double()).bfloat16())

    @pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_products_accumulate_in_float32(self, target_dtype):
        a, b = normal(32, 32), normal(32, 32, seed=1)
        target = torch.zeros(32, 32, dtype=target_dtype)
        launch(product_kernel, a, b, target, SIZE=32)
        exact = a.double() @ b.double()
        assert (target.double() - exact).abs().max() <= torch.finfo(target_dtype).eps * exact.abs().max()

    def test_products_of_float16_accumulate_in_float32(self):
        a, b = normal(32, 32, dtype=torch.float16), normal(32, 32, dtype=torch.float16, seed=1)
        target = torch.zeros(32, 32)
        launch(product_kernel, 300 * a, 300 * b, target, SIZE=32)
        exact = (300 * a).double() @ (300 * b).double()
        assert exact.abs().max() > torch.finfo(torch.float16).max
        assert (target - exact).abs().max() <= 1e-6 * exact.abs().max()

    @pytest.mark.parametrize(
        ("operation", "combine"),
        {
            "sum": torch.add,
            "cumsum": torch.add,
            "scan": torch.mul,
            "max": torch.maximum,
            "best": torch.maximum,
            "reduce": lambda x, y: torch.where(x.abs() >= y.abs(), x, y),
        }.items(),
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_fold_rounds_every_step(self, operation, combine):
        x = normal(16)
        target = torch.zeros(16, dtype=torch.bfloat16)
        launch(fold_kernel, x, target, operation=operation, BLOCK=16)
        if operation in ("scan", "cumsum"):
            for distance in (1, 2, 4, 8):
                x = torch.cat([x[:distance], combine(x[:-distance], x[distance:])])
            assert torch.equal(target, x)
        else:
            while len(x) > 1:
                x = combine(x[::2], x[1::2])
            assert target[0] == x[0]

    @pytest.mark.parametrize("other", [torch.float32, torch.float16, torch.float64, torch.int32], ids=str)
    def test_casts(self, other):
        numbers = torch.tensor([0.0, -0.0, 1.0, -1.5, 257.0, 258.9, 3.0e-5, 65504.0])
        if other != torch.int32:
            numbers = torch.cat([numbers, torch.tensor([float("inf"), -float("inf"), float("nan"), 1e-38])])
        numbers = torch.cat([numbers, torch.zeros(16 - len(numbers))]).to(other)
        bfloat16 = torch.zeros(16, dtype=torch.bfloat16)
        launch(cast_kernel, numbers, bfloat16, BLOCK=16)
        torch.testing.assert_close(bfloat16, numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)
        back = torch.zeros(16, dtype=other)
        launch(cast_kernel, bfloat16, back, BLOCK=16)
        torch.testing.assert_close(back, bfloat16.to(other), rtol=0, atol=0, equal_nan=True)

    def test_halves_go_to_the_even_one(self):
        halves = torch.tensor([1 + 1 / 256, 1 + 3 / 256, 1 + 1 / 256 + 1e-6, -1 - 1 / 256] * 4)
        target = torch.zeros(16, dtype=torch.bfloat16)
        launch(cast_kernel, halves, target, BLOCK=16)
        assert target[:4].tolist() == [1, 1 + 4 / 256, 1 + 2 / 256, -1]

    def test_an_atomic_is_refused(self):
        with pytest.raises(Exception, match="accumulate in float32"):
            launch(add_to_kernel, normal(8), normal(8), 8, BLOCK=8)


class TestFolds:
    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_elements_keep_their_order(self, reverse):
        scales, adds = (normal(4, 8, dtype=torch.float32, seed=seed) for seed in (0, 1))
        scanned, reduced = torch.zeros(4, 8), torch.zeros(8)
        launch(affine_kernel, scales, adds, scanned, reduced, REVERSE=reverse, ROWS=4, COLUMNS=8)
        total, expected = torch.zeros(4), torch.zeros(4, 8)
        for column in reversed(range(8)) if reverse else range(8):
            expected[:, column] = total = total * scales[:, column] + adds[:, column]
        torch.testing.assert_close(scanned, expected)
        total = torch.zeros(8)
        for row in range(4):
            total = total * scales[row] + adds[row]
        torch.testing.assert_close(reduced, total)


class TestPoison:
    def test_an_output_left_unwritten_shows(self):
        with poisoned_memory():
            target = torch.empty(2, 8)
        launch(copy_kernel, torch.zeros(2, 5), target, 5, 5, programs=2, BLOCK=8)
        assert target[:, :5].isfinite().all() and target[:, 5:].isnan().all()

    @pytest.mark.parametrize(
        "allocate",
        [
            lambda dtype: torch.empty(3, 2, dtype=dtype),
            lambda dtype: torch.empty_like(torch.zeros(3, 2, dtype=dtype)),
            lambda dtype: torch.empty_strided((3, 2), (1, 3), dtype=dtype),
            lambda dtype: torch.zeros(1).new_empty(3, 2, dtype=dtype),
        ],
        ids=["empty", "empty_like", "empty_strided", "new_empty"],
    )
    def test_every_way_to_allocate(self, allocate):
        with poisoned_memory():
            tensors = [
                allocate(dtype)
                for dtype in (torch.float32, torch.bfloat16, torch.int32, torch.int8, torch.bool)
            ]
        *floats, int32, int8, truth = tensors
        assert all(tensor.isnan().all() for tensor in floats)
        assert (int32 > 1e8).all() and (int8 == 42).all() and truth.all()
        assert all(tensor.shape == (3, 2) for tensor in tensors)

    def test_only_in_the_block(self):
        before = torch.empty
        with poisoned_memory():
            assert torch.empty is not before
        assert torch.empty is before
