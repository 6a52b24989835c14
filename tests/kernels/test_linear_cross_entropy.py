from __future__ import annotations

import math

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.device import simulated
from fastrlhf.kernels import TokenStat
from tests.kernels.test_linear_logprob import head
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "linear_logprob"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IGNORED = -100


def ragged(shape=(70, 16, 33), dtype=torch.float32, ignored=3):
    """A head whose every `ignored`th row does not count (0: all do)."""
    tensors = head(shape, dtype)
    if ignored:
        tensors["targets"][::ignored] = IGNORED
    return tensors


def plain(
    *, hidden_states, weight, targets, bias=None, softcap=None, denominator=None, confidence_weighted=False
):
    """PyTorch's cross-entropy of whole logits, in float32 at least, and the statistics."""
    logits = torch.nn.functional.linear(hidden_states, weight, bias)
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
    if confidence_weighted:
        losses = losses * (-losses.detach()).exp()
    kept = targets != IGNORED
    loss = losses[kept].sum() / max(1, kept.sum().item() if denominator is None else denominator)
    log_p = torch.log_softmax(logits, dim=-1)[kept]
    correct = (log_p.argmax(-1) == targets[kept]).sum()
    return loss, -(log_p.exp() * log_p).sum(), correct, kept.sum()


def with_gradients(function, tensors, device="cpu", dtype=None, **options):
    tensors = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    output = function(**(tensors | leaves), **options)
    return output, dict(zip(leaves, torch.autograd.grad(output[0], leaves.values()), strict=True))


def assert_right(tensors, device, **options):
    (loss, stats), gradients = with_gradients(kernels.linear_cross_entropy, tensors, device, **options)
    same, same_gradients = with_gradients(plain, tensors, **options)
    exact, exact_gradients = with_gradients(plain, tensors, dtype=torch.float64, **options)
    assert_as_good_as(loss, same[0], exact[0], name="loss")
    assert_as_good_as(
        stats[TokenStat.ENTROPY].to(loss.dtype), same[1].to(loss.dtype), exact[1], name="entropy"
    )
    assert stats[TokenStat.TOKENS] == exact[3]
    assert abs(stats[TokenStat.CORRECT] - same[2]) <= (tensors["weight"].dtype == torch.bfloat16)
    for name, gradient in exact_gradients.items():
        assert_as_good_as(gradients[name], same_gradients[name], gradient, name=f"gradient of {name}")


def test_two_rows_by_hand(device):
    # Logits 0 and log 3, so p = 1/4, 3/4: losses log 4 - log 3 and log 4; the row in between does not count.
    hidden_states = torch.tensor([[1.0, 2.0], [9.0, 9.0], [1.0, 2.0]], device=device, requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], device=device)
    targets = torch.tensor([1, IGNORED, 0], device=device)
    loss, stats = kernels.linear_cross_entropy(hidden_states, weight, targets)
    assert loss.item() == pytest.approx(math.log(4) - math.log(3) / 2, rel=1e-6)
    entropy = math.log(4) - 0.75 * math.log(3)
    assert stats.tolist() == pytest.approx([2 * entropy, 1, 2], rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, hidden_states)
    by_hand = [-math.log(3) / 8, 0, 0, 0, 3 * math.log(3) / 8, 0]
    assert gradient.flatten().tolist() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("ignored", [0, 2, 3])
@pytest.mark.parametrize("shape", [(1, 8, 31), (31, 33, 127), (129, 8, 33)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, dtype, shape, ignored):
    if shape[0] > 1 or ignored == 0:
        assert_right(ragged(shape, dtype, ignored), device)


@pytest.mark.parametrize(
    "options",
    [{"softcap": 1.5}, {"denominator": 7}, {"denominator": 0.2}, {"confidence_weighted": True}],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_with_every_option(device, dtype, options):
    assert_right(ragged(dtype=dtype), device, **options)


def test_reductions(device):
    tensors = {name: tensor.to(device) for name, tensor in ragged().items()}
    total = kernels.linear_cross_entropy(**tensors, reduction="sum").loss
    tokens = int((tensors["targets"] != IGNORED).sum())
    for loss in (
        kernels.linear_cross_entropy(**tensors).loss,
        kernels.linear_cross_entropy(**tensors, denominator=tokens).loss,
        kernels.linear_cross_entropy(**tensors, denominator=torch.tensor(tokens, device=device)).loss,
    ):
        torch.testing.assert_close(loss, total / tokens)


def test_parts_of_a_batch_add_up_to_it(device):
    tensors = {name: tensor.to(device) for name, tensor in ragged().items()}
    whole = kernels.linear_cross_entropy(**tensors)
    parts = []
    for part in (slice(0, 13), slice(13, None)):
        rows = {name: tensors[name][part] for name in ("hidden_states", "targets")}
        parts.append(kernels.linear_cross_entropy(**(tensors | rows), denominator=whole.stats[2]))
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)
    torch.testing.assert_close(parts[0].stats + parts[1].stats, whole.stats)


def test_rows_that_do_not_count_are_never_looked_at(device):
    tensors = {name: tensor.to(device) for name, tensor in ragged().items()}
    expected, expected_gradients = with_gradients(kernels.linear_cross_entropy, tensors, device)
    tensors["hidden_states"][tensors["targets"] == IGNORED] = math.nan
    loss, gradients = with_gradients(kernels.linear_cross_entropy, tensors, device)
    assert torch.equal(loss.loss, expected.loss) and torch.equal(loss.stats, expected.stats)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name]), name


@pytest.mark.parametrize("rows", [0, 5])
def test_where_no_row_counts_the_loss_is_a_zero_with_a_gradient(device, rows):
    tensors = ragged((rows, 8, 33))
    tensors["targets"].fill_(IGNORED)
    (loss, stats), gradients = with_gradients(kernels.linear_cross_entropy, tensors, device)
    assert loss == 0 and stats.tolist() == [0, 0, 0]
    assert all(not gradient.any() for gradient in gradients.values())


def test_the_target_counts_as_correct_where_no_word_is_likelier(device):
    tensors = head((4, 2, 5))
    tensors["hidden_states"].zero_()
    tensors["bias"] = torch.tensor([1.0, 3.0, 3.0, 0.0, -1.0])
    tensors["targets"] = torch.tensor([0, 1, 2, 3])
    _, stats = kernels.linear_cross_entropy(**{name: tensor.to(device) for name, tensor in tensors.items()})
    assert stats[TokenStat.CORRECT] == 2, "both of the two likeliest"


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_correct_is_argmax_on_many_rows(device, scale):
    tensors = {name: tensor.to(device) for name, tensor in head((257, 16, 33), scale=scale).items()}
    logits = torch.nn.functional.linear(*(tensors[name] for name in ("hidden_states", "weight", "bias")))
    tensors["targets"][::2] = logits.argmax(-1)[::2]
    correct = kernels.linear_cross_entropy(**tensors).stats[TokenStat.CORRECT]
    assert correct == (logits.argmax(-1) == tensors["targets"]).sum()


def test_without_ignored_rows_a_device_does_not_make_the_host_wait():
    tensors = head((5, 8, 33))
    with simulated.registered() as device:
        moved = {name: tensor.to("sim") for name, tensor in tensors.items()}
        with device.step():
            loss = kernels.linear_cross_entropy(**moved, ignore_index=None).loss
        assert loss.item() == pytest.approx(kernels.linear_cross_entropy(**tensors).loss.item())


def test_under_autocast_the_values_are_those_of_bfloat16():
    tensors = ragged()
    with torch.autocast("cpu", torch.bfloat16):
        output, gradients = with_gradients(kernels.linear_cross_entropy, tensors)
    narrow = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    expected = kernels.linear_cross_entropy(**narrow)
    assert output.loss.dtype == torch.float32 and torch.equal(output.loss, expected.loss)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


def test_memory_is_of_the_rows_that_count():
    rows, words = 512, 4003
    tensors = head((rows, 16, words))
    tensors["targets"][32:] = IGNORED
    used = allocations(lambda: kernels.linear_cross_entropy(**tensors))
    assert used.peak < rows * words * 4 / 4, "never whole logits"


def test_gradcheck():
    tensors = ragged((7, 3, 5), torch.float64)
    leaves = [tensors[name].requires_grad_() for name in ("hidden_states", "weight", "bias")]

    def loss(hidden_states, weight, bias):
        return kernels.linear_cross_entropy(hidden_states, weight, tensors["targets"], bias=bias).loss

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reduction": "none"}, ValueError, r"reduction is 'none', expected one of mean, sum"),
        ({"reduction": "sum", "denominator": 3}, ValueError, r"reduction is 'sum' and a denominator"),
        ({"targets": torch.zeros(4).long()}, ValueError, r"targets has shape \[4\], expected \[N\] = \[5\]"),
        ({"targets": torch.zeros(5).int()}, TypeError, r"targets has dtype torch\.int32"),
        ({"targets": torch.tensor([0, 1, 2, 7, -100])}, IndexError, r"targets lie in \[0, 7\]"),
        (
            {"targets": torch.tensor([0, 1, 2, 3, -100]), "ignore_index": None},
            IndexError,
            r"targets lie in \[-100, 3\]",
        ),
        ({"softcap": 0.0}, ValueError, r"softcap is 0\.0, expected more than 0"),
    ],
    ids=str,
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    with pytest.raises(error, match=message):
        kernels.linear_cross_entropy(**(head((5, 3, 7)) | changes))
