from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrlhf import kernels
from fastrlhf.kernels import Stat, dispatch
from fastrlhf.kernels.cases import cases
from fastrlhf.kernels.cpu import linear_ppo_loss as cpu_launcher
from tests.kernels.test_linear_logprob import plain as plain_head
from tests.kernels.test_ppo_loss import EVERYTHING
from tests.kernels.test_ppo_loss import plain as plain_loss
from tests.support.backends import interpreted
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as, joined

OPERATION = "linear_ppo_loss"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ROWS, WIDTH, WORDS = 21, 8, 97
SHAPES = [(1, 1, 1), (31, 8, 33), (33, 31, 127), (127, 16, 129), (129, 8, 97), (300, 5, 31)]
HEAD, LEAVES = ("hidden_states", "weight", "bias"), ("hidden_states", "weight", "bias", "values")
SETTINGS = {
    "policy alone": {},
    "entropy": {"entropy_coef": 0.5},
    "KL": {"kl_coef": 0.7, "kl_estimator": "k2"},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 2.0, "entropy_coef": 0.5},
    "everything": dict(**EVERYTHING, temperature=0.7, softcap=5.0, denominator=17.0),
}


def case(shape=(ROWS, WIDTH, WORDS), dtype=torch.float32, scale=1.0, seed=0):
    """Head, tokens and what PPO knows of them; log-ratios of about 0.3, some clipped, some masked out."""
    torch.manual_seed(seed)
    rows, width, words = shape
    hidden_states, weight = torch.randn(rows, width), scale * torch.randn(words, width) / width**0.5
    targets, bias = torch.randint(words, (rows,)), torch.randn(words)
    logprobs, _ = plain_head(hidden_states=hidden_states, weight=weight, targets=targets, bias=bias)
    old_values = torch.randn(rows)
    known = {
        "old_logprobs": logprobs + 0.3 * torch.randn(rows),
        "advantages": torch.randn(rows),
        "values": old_values + 0.3 * torch.randn(rows),
        "old_values": old_values,
        "returns": torch.randn(rows),
        "ref_logprobs": logprobs + 0.3 * torch.randn(rows),
        "weights": 0.5 + torch.rand(rows),
    }
    kept = torch.promote_types(dtype, torch.float32)
    return {
        "hidden_states": hidden_states.to(dtype),
        "weight": weight.to(dtype),
        "targets": targets,
        "bias": bias.to(dtype),
        **{name: tensor.to(kept) for name, tensor in known.items()},
        "mask": torch.arange(rows) % 4 != 2,
        "value_mask": torch.arange(rows) % 5 != 3,
    }


def plain(
    *,
    hidden_states,
    weight,
    targets,
    old_logprobs,
    advantages,
    mask,
    bias=None,
    temperature=1.0,
    softcap=None,
    **options,
):
    """Whole logits, and the loss as its equation reads."""
    logprobs, entropy = plain_head(
        hidden_states=hidden_states,
        weight=weight,
        targets=targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
    )
    return plain_loss(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        mask=mask,
        entropy=entropy,
        **options,
    )


def composed(*, hidden_states, weight, targets, bias=None, temperature=1.0, softcap=None, **options):
    """The two operations that this one is."""
    logprobs, entropy = kernels.linear_logprob(
        hidden_states, weight, targets, bias=bias, temperature=temperature, softcap=softcap
    )
    return kernels.ppo_loss(logprobs, entropy=entropy, **options)


def with_gradients(function, tensors, device="cpu", needed=LEAVES, factor=1.7, **options):
    """Loss, stats and the gradients of `factor` x loss in the leaves `needed`."""
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    leaves = {name: tensors[name].detach().requires_grad_() for name in needed if name in tensors}
    loss, stats = function(**(tensors | leaves), **options)
    gradients = torch.autograd.grad(factor * loss, leaves.values(), allow_unused=True)
    return loss, stats, dict(zip(leaves, gradients, strict=True))


def in_float64(tensors):
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def assert_right(tensors, device, needed=LEAVES, **options):
    """Loss, stats and gradients against float64, of one case or of several at once."""
    several = tensors if isinstance(tensors, list) else [tensors]
    actual, same, exact = (
        joined(
            (loss, stats.to(narrow), *gradients.values())
            for loss, stats, gradients in (
                with_gradients(function, change(one), place, needed, **options) for one in several
            )
        )
        # The sums of float32 terms are as good as float32 on the scale of the token count.
        for function, change, place, narrow in (
            (kernels.linear_ppo_loss, dict, device, torch.float32),
            (plain, dict, "cpu", torch.float32),
            (plain, in_float64, "cpu", torch.float64),
        )
    )
    names = ("loss", "stats", *(f"gradient of {name}" for name in needed if name in several[0]))
    for name, *three in zip(names, actual, same, exact, strict=True):
        assert_as_good_as(*three, name=name)


def several(shape=(ROWS, WIDTH, WORDS), **options):
    return [case(shape, seed=seed, **options) for seed in range(2 if interpreted() else 8)]


def without_values(tensors):
    return {
        name: t
        for name, t in tensors.items()
        if name not in ("values", "old_values", "returns", "value_mask")
    }


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["frozen", "trainable"])
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_with_every_option(device, dtype, options, needed):
    assert_right(several(dtype=dtype), device, needed, **options)


@pytest.mark.parametrize(
    "needed", [LEAVES[:2], LEAVES[1:2], LEAVES[2:3], LEAVES[3:], LEAVES[::3]], ids=" ".join
)
def test_gradients_only_where_asked(device, needed):
    assert_right(several(), device, needed, **EVERYTHING)


@pytest.mark.parametrize("needed", [HEAD[:1], HEAD], ids=["frozen", "trainable"])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, shape, entropy_coef, needed):
    assert_right([without_values(one) for one in several(shape)], device, needed, entropy_coef=entropy_coef)


@pytest.mark.parametrize("needed", [HEAD[:1], HEAD], ids=["frozen", "trainable"])
@pytest.mark.parametrize("words", [32_001, 50_257])
def test_as_good_as_plain_on_large_ragged_vocabularies(device, words, needed):
    if interpreted():
        pytest.skip("half a minute each; linear_logprob's test runs the same kernels so")
    assert_right(case((3, 4, words)), device, needed, entropy_coef=0.5)


@pytest.mark.parametrize("left_out", ["bias", "ref_logprobs", "weights", "value_mask"])
def test_tensors_that_may_be_left_out(device, left_out):
    tensors = [{name: tensor for name, tensor in one.items() if name != left_out} for one in several()]
    assert_right(tensors, device, entropy_coef=0.5)


def test_non_contiguous_inputs(device):
    tensors = {
        name: t[::2, ::2] if name in ("hidden_states", "weight") else t[::2]
        for name, t in case((66, 16, 194)).items()
    }
    tensors["targets"] = tensors["targets"] % 97
    tensors["advantages"] = tensors["advantages"][:1].expand(33)
    for name in ("hidden_states", "weight"):
        tensors[name] = tensors[name].t().contiguous().t()
    assert_right(tensors, device, entropy_coef=0.5)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_extreme_logits(device, options):
    # Whole numbers, so that the logits (up to 1e4 either way) are exact and the test is about what follows.
    tensors = case((70, 2, 33))
    tensors["hidden_states"] = torch.randint(-4, 5, (70, 2)).float()
    tensors["weight"] = torch.randint(-4, 5, (33, 2)).mul(256).float()
    tensors["bias"] = torch.zeros(33)
    tensors["bias"][:2] = torch.tensor([8192, -8192])
    logprobs, _ = plain_head(
        **{name: tensors[name] for name in ("hidden_states", "weight", "targets", "bias")}
    )
    for name in ("old_logprobs", "ref_logprobs"):
        tensors[name] = logprobs + torch.randint(-2, 3, (70,)) / 8
    assert_right(tensors, device, **options)


def test_all_advantages_zero(device):
    tensors = case()
    tensors["advantages"].zero_()
    assert_right(tensors, device, **EVERYTHING)
    loss, _, gradients = with_gradients(
        kernels.linear_ppo_loss, without_values(tensors), device, HEAD, entropy_coef=0.0
    )
    assert loss == 0 and not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["frozen", "trainable"])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_fully_masked(device, entropy_coef, needed):
    tensors = case() | {name: torch.zeros(ROWS, dtype=torch.bool) for name in ("mask", "value_mask")}
    loss, stats, gradients = with_gradients(
        kernels.linear_ppo_loss, tensors, device, needed, entropy_coef=entropy_coef
    )
    assert loss == 0 and not stats.any()
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["frozen", "trainable"])
def test_empty(device, needed):
    tensors = {
        name: t if name in ("weight", "bias") else t[:0] for name, t in case((1, WIDTH, WORDS)).items()
    }
    loss, stats, gradients = with_gradients(kernels.linear_ppo_loss, tensors, device, needed, **EVERYTHING)
    assert loss == 0 and not stats.any()
    for name, gradient in gradients.items():
        assert gradient.shape == tensors[name].shape and not gradient.any()


def test_loss_and_statistics_are_those_of_ppo_loss(device):
    tensors = {name: tensor.to(device) for name, tensor in case().items()}
    actual = with_gradients(kernels.linear_ppo_loss, tensors, device, ("values",), **EVERYTHING)
    expected = with_gradients(composed, tensors, device, ("values",), **EVERYTHING)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    assert actual[2]["values"].any() and torch.equal(actual[2]["values"], expected[2]["values"])
    assert actual[1][Stat.ENTROPY] > 0


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["frozen", "trainable"])
def test_gradients_are_those_of_its_parts(device, needed):
    tensors = case((300, WIDTH, WORDS))
    actual = with_gradients(kernels.linear_ppo_loss, tensors, device, needed, **EVERYTHING)
    expected = with_gradients(composed, tensors, device, needed, **EVERYTHING)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["frozen", "trainable"])
def test_micro_batches_with_a_common_denominator_add_up(device, needed):
    tensors = case((300, WIDTH, WORDS), torch.float64)
    options = EVERYTHING | {"denominator": 225.0, "value_denominator": 240.0}
    whole = with_gradients(kernels.linear_ppo_loss, tensors, device, needed, **options)
    rows = {name for name in tensors if name not in ("weight", "bias")}
    parts = [
        with_gradients(
            kernels.linear_ppo_loss,
            {name: t[part] if name in rows else t for name, t in tensors.items()},
            device,
            needed,
            **options,
        )
        for part in (slice(170), slice(170, 300))
    ]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    torch.testing.assert_close(whole[1], parts[0][1] + parts[1][1])
    for name, gradient in whole[2].items():
        first, second = (part[2][name] for part in parts)
        joined = torch.cat([first, second]) if name in rows else first + second
        torch.testing.assert_close(gradient, joined)


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["frozen", "trainable"])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_gradcheck(device, entropy_coef, needed):
    tensors = {name: tensor.to(device) for name, tensor in case((5, 3, 7), torch.float64).items()}

    def function(*leaves):
        given = tensors | dict(zip(needed, leaves, strict=True))
        return kernels.linear_ppo_loss(**given, entropy_coef=entropy_coef, kl_coef=0.3).loss

    assert torch.autograd.gradcheck(function, [tensors[name].clone().requires_grad_() for name in needed])


@pytest.mark.parametrize("needed", [HEAD[:1], HEAD], ids=["frozen", "trainable"])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_the_backward_runs_no_matrix_product(device, entropy_coef, needed):
    tensors = {name: tensor.to(device) for name, tensor in case().items()}
    leaves = [tensors[name].requires_grad_() for name in needed]
    loss, _ = kernels.linear_ppo_loss(**tensors, entropy_coef=entropy_coef)
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
    gradients = torch.autograd.grad(loss, leaves)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_second_backward_of_a_graph_that_is_kept(device, factor):
    tensors = {name: tensor.to(device) for name, tensor in case().items()}
    leaves = [tensors[name].requires_grad_() for name in LEAVES]
    loss = factor * kernels.linear_ppo_loss(**tensors).loss
    first = [gradient.clone() for gradient in torch.autograd.grad(loss, leaves, retain_graph=True)]
    loss.backward(retain_graph=True)
    loss.backward()
    for leaf, gradient in zip(leaves, first, strict=True):
        assert torch.equal(leaf.grad, 2 * gradient)


@pytest.mark.parametrize(("needed", "copies"), [((), 0), (HEAD[:1], 1), (HEAD, 1)])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_memory_kept_is_the_gradients(device, entropy_coef, needed, copies):
    tensors = {name: tensor.to(device) for name, tensor in without_values(case()).items()}
    for name in needed:
        tensors[name].requires_grad_()
    used = allocations(lambda: kernels.linear_ppo_loss(**tensors, entropy_coef=entropy_coef))
    gradients = sum(tensors[name].nbytes for name in needed) * copies
    assert used.kept == 4 + 8 * len(Stat) + gradients


@pytest.mark.parametrize("needed", [HEAD[:1], HEAD], ids=["frozen", "trainable"])
def test_the_backward_of_the_loss_itself_hands_over_what_was_kept(needed):
    tensors = case()
    leaves = [tensors[name].requires_grad_() for name in needed]
    with kernels.using("reference"):
        losses = [kernels.linear_ppo_loss(**tensors).loss for _ in range(2)]
    used = [
        allocations(lambda loss=loss, factor=factor: (factor * loss).backward())
        for loss, factor in zip(losses, (1.0, 3.0), strict=True)
    ]
    assert used[0].peak < 100 and leaves[0].grad.any()
    assert used[1].peak >= sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize("needed", [HEAD[:1], HEAD], ids=["frozen", "trainable"])
def test_memory_is_blocks_never_whole_logits(device, needed, monkeypatch):
    monkeypatch.setattr(
        cpu_launcher, "WIDE", 0
    )  # narrower states go by the two parts, which are measured there
    if dispatch.forced_backend() == "triton":
        pytest.skip("what it holds is what the kernels of linear_logprob hold, and measured there")
    peaks = []
    for rows in (512, 1024):
        tensors = without_values(case((rows, 4, 3001)))
        used = allocations(
            lambda tensors=tensors: with_gradients(
                kernels.linear_ppo_loss, tensors, device, needed, 1.0, entropy_coef=0.5
            )
        )
        assert used.largest <= 128 * (3001 + 12) * 4, "rows of logits, in whole stripes of words"
        peaks.append(used.peak)
    assert peaks[1] - peaks[0] <= 512 * 200, "what is known of a token"


@pytest.mark.parametrize("case", cases(OPERATION, torch.float32))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(device, case, dtype):
    arguments = [
        arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in cases(OPERATION, dtype)[case]
    ]
    arguments[7] = [None if tensor is None else tensor.to(device) for tensor in arguments[7]]
    for position, least in ((0, 1), (1, 2), (3, 2), (4, 0)):  # hidden_states, weight, bias, values
        if arguments[position] is not None and arguments[-1] >= least:
            arguments[position] = arguments[position].clone().requires_grad_()
    torch.library.opcheck(torch.ops.fastrlhf.linear_ppo_loss.default, tuple(arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_and_fake_tensors(dtype):
    tensors = case(dtype=dtype)
    loss, stats, gradients = with_gradients(kernels.linear_ppo_loss, tensors, "meta")
    assert loss.shape == () and loss.dtype == torch.promote_types(dtype, torch.float32)
    assert stats.shape == (len(Stat),)
    for name, gradient in gradients.items():
        assert gradient.shape == tensors[name].shape and gradient.dtype == tensors[name].dtype
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        assert kernels.linear_ppo_loss(**fakes).stats.shape == (len(Stat),)


def test_compiles_whole(device):
    def scaled(**tensors):
        tensors["hidden_states"] = 2 * tensors["hidden_states"]
        return tuple(kernels.linear_ppo_loss(**tensors, entropy_coef=0.1))

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(compiled, case(), device), with_gradients(scaled, case(), device)
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.zeros(97)}, ValueError, r"weight has shape \[97\], expected \[V, D\]"),
        ({"mask": torch.ones(20).bool()}, ValueError, r"mask has shape \[20\]"),
        ({"old_logprobs": torch.zeros(20)}, ValueError, r"old_logprobs has shape \[20\]"),
        ({"advantages": torch.zeros(21).half()}, TypeError, r"advantages has dtype torch\.float16"),
        ({"values": None}, ValueError, "values, old_values and returns go together; missing: values"),
        ({"entropy": torch.zeros(21)}, TypeError, "entropy is not an option"),
        ({"logprobs": torch.zeros(21)}, TypeError, "logprobs"),
        ({"cliprang": 0.2}, TypeError, "cliprang"),
        ({"cliprange": -0.1}, ValueError, r"cliprange is -0\.1"),
        ({"temperature": 0}, ValueError, r"temperature is 0, expected more than 0"),
        ({"targets": torch.full((21,), 97)}, IndexError, r"targets lie in \[97, 97\], expected \[0, 97\)"),
    ],
)
def test_errors_are_those_of_its_parts(changes, error, message):
    with pytest.raises(error, match=message):
        kernels.linear_ppo_loss(**(case() | changes))
