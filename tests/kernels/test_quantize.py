from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrlhf import kernels
from fastrlhf.kernels.code_books import NF4, dynamic_8bit, table
from fastrlhf.kernels.quantize import FORMATS
from tests.support.configs import config_id, every_config, forced_config
from tests.support.precision import assert_as_good_as

OPERATION = "quantize"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 31), (2, 33), (5, 63), (4, 64), (3, 65), (2, 127), (7, 129), (33, 192), (1, 700)]


def normal(shape, dtype=torch.float32, seed=0):
    """Rows of different scales, one of zeros, and one whose middle is zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * torch.exp2(torch.arange(shape[0]) % 7 - 4.0)[:, None]
    weight[1:2] = 0
    weight[2:3, : shape[1] // 2] = 0
    return weight.to(dtype)


def unpacked(quantized):
    """The codes of NF4 one by one, `[out, in padded to 64]`."""
    codes = quantized.codes.cpu()
    return torch.stack([codes >> 4, codes & 15], dim=2).flatten(1)


def nearest(values, book):
    """The index of the nearest value of `book`, in float64, the lower at a tie."""
    return (values.double()[..., None] - book.double()).abs().argmin(dim=-1)


def blocks_of(weight, size=64):
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % size))
    return padded.view(weight.shape[0], padded.shape[1] // size, size)


def test_the_code_book_is_made_of_quantiles_as_appendix_e_says():
    # The mean of neighbouring quantiles, eight negative ones with zero and nine positive ones, scaled to one.
    ppf = torch.special.ndtri
    positive = ppf(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -ppf(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    book = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    torch.testing.assert_close(torch.tensor(NF4).double(), book / book.max(), rtol=0, atol=1e-6)
    assert torch.tensor(NF4).double().tolist() == list(NF4), "the published digits are float32 numbers"


def test_the_dynamic_code_book():
    book = dynamic_8bit()
    assert len(book) == len(set(book.tolist())) == 256 and book.tolist() == sorted(book.tolist())
    assert book[-1] == 1 and (book == 0).sum() == 1
    # the largest exponent has 64 fractions of 0.9 / 64, the smallest the one between 0.1 and 1, times 1e-6
    assert book[-2].item() == pytest.approx(1 - 0.45 / 64, rel=1e-6)
    assert book[book > 0].min().item() == pytest.approx(0.55e-6, rel=1e-6)
    assert torch.equal(book[book < 0].flip(0), -book[(book > 0) & (book < 1)])


def test_int8_by_hand(device):
    # The scale is 254 / 127 = 2: codes 127, and 0.5, 1.5, -2.5 by halves to even
    weight = torch.tensor([[254.0, 1.0, 3.0, -5.0, -254.0]], device=device)
    quantized = kernels.quantize(weight, "int8")
    assert quantized.codes.tolist() == [[127, 0, 2, -2, -127]] and quantized.scales.tolist() == [2]
    assert kernels.dequantize(quantized).tolist() == [[254, 0, 4, -4, -254]]


def test_nf4_by_hand(device):
    # 4 is the block's maximum; 4 times a value of the book is that value; what follows is the padding's zero
    weight = 4 * torch.tensor([[*NF4, 0.0]], device=device)
    quantized = kernels.quantize(weight, "nf4")
    assert quantized.codes[0, :9].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF, 0x77]
    assert quantized.codes[0, 9:].tolist() == [0x77] * 23
    assert torch.equal(kernels.dequantize(quantized), weight), "one block's maximum is its own mean"
    assert (quantized.format, quantized.shape) == ("nf4", (1, 17))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_codes_and_bounds(device, dtype, shape):
    weight = normal(shape, dtype)
    quantized = kernels.quantize(weight.to(device), "int8")
    exact, scales = weight.double(), weight.abs().amax(dim=1).float() / 127
    assert torch.equal(quantized.scales.cpu(), scales)
    codes = torch.where(scales[:, None] > 0, weight.float() / scales[:, None], 0.0).round()
    assert torch.equal(quantized.codes.cpu(), codes.to(torch.int8))
    back = kernels.dequantize(quantized, torch.float32).cpu()
    assert ((back - exact).abs() <= scales[:, None].double() * (0.5 + 1e-4)).all()
    assert not back[1:2].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nf4_codes_and_bounds(device, dtype, shape):
    weight = normal(shape, dtype)
    quantized = kernels.quantize(weight.to(device), "nf4")
    blocks = blocks_of(weight.float())
    maxima = blocks.abs().amax(dim=2)
    fraction = torch.where(maxima[..., None] > 0, blocks / maxima[..., None], 0.0)
    assert torch.equal(unpacked(quantized), nearest(fraction, torch.tensor(NF4)).view(shape[0], -1).byte())

    # the maxima, as their 8-bit floats give them, and then the weight itself
    mean = maxima.double().mean().float()
    centred = (maxima - mean).flatten()
    of_block = torch.stack([part.abs().max() for part in centred.split(256)])
    assert_as_good_as(quantized.scale_scales.cpu(), of_block, of_block.double(), name="scale_scales")
    own = table("dynamic", torch.device("cpu"))[quantized.scales.cpu().long()].flatten()
    own_maxima = own * of_block.repeat_interleave(256)[: len(own)] + mean
    error_of_maxima = (own_maxima.view(maxima.shape) - maxima).abs()
    assert (
        error_of_maxima.flatten() <= of_block.repeat_interleave(256)[: len(own)] * 0.45 / 64 * 1.001
    ).all()

    error = (kernels.dequantize(quantized, torch.float32).cpu() - weight.double()).abs()
    half_gap = max(b - a for a, b in itertools.pairwise(NF4)) / 2
    allowed = (half_gap * maxima + error_of_maxima) * (1 + 1e-5)
    assert (blocks_of(error) <= allowed[..., None]).all()
    zeros = blocks_of(weight.float()) == 0
    assert not blocks_of(kernels.dequantize(quantized).cpu())[zeros].any()


def test_every_config(triton_config):
    weight = normal((5, 300))
    for format in FORMATS:
        with kernels.using("reference"):
            expected = kernels.quantize(weight, format)
        actual = kernels.quantize(weight.to(triton_config), format)
        assert torch.equal(actual.codes.cpu(), expected.codes)
        assert torch.equal(actual.scales.cpu(), expected.scales)


@pytest.mark.parametrize("choice", every_config("dequantize"), ids=config_id)
def test_every_config_of_dequantize(choice):
    quantized = [kernels.quantize(normal((5, 300)), format) for format in FORMATS]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for one in quantized:
        with kernels.using("reference"):
            expected = kernels.dequantize(one)
        with kernels.using("triton"), forced_config(*choice):
            actual = kernels.dequantize(one.to(device)).cpu()
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)  # a GPU may fuse


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_dequantize_rounds_once(device, format, dtype):
    quantized = kernels.quantize(normal((7, 321)), format)
    exact = _exact(quantized)
    quantized = quantized.to(device)
    plain = kernels.dequantize(quantized, torch.float32).cpu()
    assert_as_good_as(plain, exact.float(), exact, name="float32")
    assert torch.equal(kernels.dequantize(quantized, dtype).cpu(), plain.to(dtype))
    assert kernels.dequantize(quantized).dtype == torch.float32


def _exact(quantized):
    """What the codes stand for, in float64."""
    if quantized.format == "int8":
        return quantized.codes.double() * quantized.scales.double()[:, None]
    scales = quantized.scales.long().flatten()
    of_block = quantized.scale_scales.double().repeat_interleave(256)[: len(scales)]
    maxima = dynamic_8bit().double()[scales] * of_block + quantized.offset.double()
    values = torch.tensor(NF4).double()[unpacked(quantized).long()]
    return (blocks_of(values) * maxima.view(*quantized.scales.shape, 1)).flatten(1)[
        :, : quantized.in_features
    ]


def test_ties_and_thresholds(device):
    """One is the block's maximum; on a threshold the lower code, next to it the nearer one."""
    thresholds = table("nf4 thresholds", torch.device("cpu"))
    up = torch.nextafter(thresholds, torch.tensor(2.0))
    down = torch.nextafter(thresholds, torch.tensor(-2.0))
    weight = torch.stack([torch.cat([part, torch.ones(1)]) for part in (thresholds, up, down)])
    codes = unpacked(kernels.quantize(weight.to(device), "nf4"))[:, :15]
    below = torch.arange(15).tolist()
    assert codes.tolist() == [below, [code + 1 for code in below], below]


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30, 3.4e38])
@pytest.mark.parametrize("format", FORMATS)
def test_extremes(device, format, scale):
    weight = torch.linspace(-1, 1, 130)[None] * scale
    back = kernels.dequantize(kernels.quantize(weight.to(device), format)).cpu()
    assert back.isfinite().all()
    smallest = torch.finfo(torch.float32).smallest_normal * 2.0**-23
    # below 127 of the smallest number there is no scale to be had, and int8 gives zeros
    allowed = scale * (0.16 if format == "nf4" else 0.004) + 127 * smallest
    assert ((back.double() - weight.double()).abs() <= allowed).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_empty(device, format, shape):
    quantized = kernels.quantize(torch.zeros(shape, device=device), format)
    assert quantized.shape == shape and kernels.dequantize(quantized).shape == shape


@pytest.mark.parametrize("format", FORMATS)
def test_non_contiguous(device, format):
    weight = normal((9, 140)).to(device)
    expected = kernels.quantize(weight[::2, ::2].contiguous(), format)
    transposed = weight.t().contiguous().t()[::2, ::2]
    for one, other in zip(kernels.quantize(transposed, format), expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    spread = expected._replace(codes=expected.codes.repeat_interleave(2, dim=1)[:, ::2])
    assert torch.equal(kernels.dequantize(spread), kernels.dequantize(expected))


def test_memory(device):
    weight = torch.randn(64, 4096, device=device)
    assert kernels.quantize(weight, "int8").nbytes == 64 * 4096 + 64 * 4
    assert kernels.quantize(weight, "nf4").nbytes == 64 * 4096 // 2 + 64 * 64 + 64 * 64 // 256 * 4 + 4


@settings(max_examples=50, deadline=None)
@given(
    out=st.integers(0, 5),
    width=st.integers(0, 200),
    seed=st.integers(0, 2**20),
    format=st.sampled_from(FORMATS),
)
def test_quantising_again_changes_no_code(out, width, seed, format):
    """The values that codes stand for have those codes (those of nf4 before its maxima are 8-bit floats)."""
    once = kernels.quantize(normal((out, width), seed=seed), format)
    fractions = torch.tensor(NF4)[unpacked(once).long()][:, :width] if format == "nf4" else None
    back = kernels.dequantize(once) if fractions is None else fractions
    assert torch.equal(kernels.quantize(back, format).codes, once.codes)


@pytest.mark.parametrize("format", FORMATS)
def test_opcheck(device, format):
    weight = normal((3, 70)).to(device)
    torch.library.opcheck(torch.ops.fastrlhf.quantize.default, (weight, format))
    torch.library.opcheck(
        torch.ops.fastrlhf.dequantize.default, (*kernels.quantize(weight, format)[:5], torch.bfloat16)
    )


@pytest.mark.parametrize("format", FORMATS)
def test_meta_and_fake_tensors(format):
    quantized = kernels.quantize(torch.zeros(3, 70, device="meta"), format)
    assert kernels.dequantize(quantized).shape == (3, 70)
    with FakeTensorMode():
        assert kernels.dequantize(kernels.quantize(torch.zeros(3, 70), format)).shape == (3, 70)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_that_is_not_finite(format, bad):
    weight = torch.ones(3, 70)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="weight holds a NaN or an infinity"):
        kernels.quantize(weight, format)


def test_errors_name_the_argument():
    weight = torch.zeros(3, 70)
    with pytest.raises(ValueError, match=r"weight has shape \[3\], expected \[out, in\]"):
        kernels.quantize(torch.zeros(3))
    with pytest.raises(TypeError, match=r"weight has dtype torch\.float64, expected"):
        kernels.quantize(weight.double())
    with pytest.raises(ValueError, match="format is 'fp4', expected one of int8, nf4"):
        kernels.quantize(weight, "fp4")
    int8, nf4 = (kernels.quantize(weight, format) for format in FORMATS)
    with pytest.raises(TypeError, match=r"dtype is torch\.int8"):
        kernels.dequantize(int8, torch.int8)
    with pytest.raises(ValueError, match=r"weight\.codes has shape \[3, 70\], .* \[3, 71\]"):
        kernels.dequantize(int8._replace(in_features=71))
    with pytest.raises(ValueError, match=r"weight\.scales has shape \[2\], .*\[3\]"):
        kernels.dequantize(int8._replace(scales=int8.scales[:2]))
    with pytest.raises(TypeError, match=r"weight\.codes has dtype torch\.int16"):
        kernels.dequantize(int8._replace(codes=int8.codes.short()))
    with pytest.raises(ValueError, match="weight has a scale_scales or offset, which only nf4 has"):
        kernels.dequantize(int8._replace(offset=nf4.offset))
    with pytest.raises(ValueError, match=r"weight\.scale_scales has shape \[2\], .*\[1\]"):
        kernels.dequantize(nf4._replace(scale_scales=torch.zeros(2)))
    with pytest.raises(TypeError, match=r"weight\.offset has dtype torch\.float64"):
        kernels.dequantize(nf4._replace(offset=nf4.offset.double()))
    with pytest.raises(ValueError, match="all tensors must be on one device"):
        kernels.dequantize(int8._replace(scales=int8.scales.to("meta")))
