from __future__ import annotations

import math

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.device import simulated
from fastrlhf.kernels import PreferenceStat
from tests.kernels.test_linear_logprob import head
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "linear_logprob"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LENGTHS = (12, 1, 0, 20, 7, 30)


def pairs(lengths=LENGTHS, width=16, words=33, dtype=torch.float32):
    """A head, and how many of its rows each of two times three sequences has."""
    tensors = head((sum(lengths), width, words), dtype)
    return tensors | {"lengths": torch.tensor(lengths)}


def plain(*, hidden_states, weight, targets, lengths, bias=None, softcap=None):
    """Whole logits; statistics in float32 at least."""
    logits = torch.nn.functional.linear(hidden_states, weight, bias)
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = torch.log_softmax(logits, dim=-1)
    logprobs = log_p[torch.arange(len(targets)), targets]
    sums = torch.stack([part.sum() for part in logprobs.split(lengths.tolist())])
    chosen = slice(int(lengths[: len(lengths) // 2].sum()))
    rejected = slice(chosen.stop, None)
    correct = (log_p.argmax(-1) == targets)[chosen].sum()
    counts = len(targets), chosen.stop, len(targets) - chosen.stop
    mean_logits = [logits[part].mean(-1).sum() for part in (chosen, rejected)]
    stats = [-(log_p.exp() * log_p).sum(), counts[0], correct, counts[1], *mean_logits, counts[2]]
    return *sums.chunk(2), torch.stack([torch.as_tensor(value).double() for value in stats])


def with_gradients(function, tensors, device="cpu", dtype=None, **options):
    """The output, and the gradients of a sum that weighs each sequence in its own way."""
    tensors = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    chosen, rejected, stats = function(**(tensors | leaves), **options)
    weights = torch.arange(1, len(chosen) + 1, device=chosen.device)
    total = (weights * chosen).sum() - (2 * weights * rejected).sum()
    gradients = torch.autograd.grad(total, leaves.values())
    return (chosen, rejected, stats), dict(zip(leaves, gradients, strict=True))


def assert_right(tensors, device, **options):
    actual, gradients = with_gradients(kernels.linear_preference, tensors, device, **options)
    same, same_gradients = with_gradients(plain, tensors, **options)
    exact, exact_gradients = with_gradients(plain, tensors, dtype=torch.float64, **options)
    for at, name in enumerate(("chosen", "rejected")):
        assert_as_good_as(actual[at], same[at], exact[at], name=name)
    for name, gradient in exact_gradients.items():
        assert_as_good_as(gradients[name], same_gradients[name], gradient, name=f"gradient of {name}")
    return actual[2], exact[2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, (1, 1), (3, 0, 0, 90), (64, 64)], ids=str)
def test_as_good_as_plain_on_ragged_sequences(device, dtype, lengths):
    stats, exact = assert_right(pairs(lengths, dtype=dtype), device)
    narrow = dtype == torch.bfloat16
    for stat in PreferenceStat:
        loose = 1.5 if narrow and stat == PreferenceStat.CHOSEN_CORRECT else 0
        assert stats[stat].item() == pytest.approx(
            exact[stat].item(), rel=2e-2 if narrow else 1e-4, abs=loose + 0.02
        )


def test_with_a_softcap_the_mean_logits_are_not_known(device):
    stats, exact = assert_right(pairs(), device, softcap=1.5)
    logits = [PreferenceStat.CHOSEN_LOGITS, PreferenceStat.REJECTED_LOGITS]
    assert stats[logits].isnan().all()
    others = [stat for stat in PreferenceStat if stat not in logits]
    torch.testing.assert_close(stats[others].cpu(), exact[others], rtol=1e-4, atol=0)


def test_two_pairs_by_hand(device):
    # Logits 0 and log 3, so p = 1/4, 3/4.
    hidden_states = torch.tensor([[1.0, 2.0]] * 5, device=device)
    weight = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], device=device)
    targets = torch.tensor([1, 1, 0, 0, 1], device=device)
    lengths = torch.tensor([2, 1, 0, 2], device=device)
    chosen, rejected, stats = kernels.linear_preference(hidden_states, weight, targets, lengths)
    rare, common = math.log(1 / 4), math.log(3 / 4)
    assert chosen.tolist() == pytest.approx([2 * common, rare], rel=1e-6)
    assert rejected.tolist() == pytest.approx([0, rare + common], rel=1e-6)
    entropy, mean = math.log(4) - 0.75 * math.log(3), math.log(3) / 2
    assert stats.tolist() == pytest.approx([5 * entropy, 5, 2, 3, 3 * mean, 2 * mean, 2], rel=1e-6)


def test_a_frozen_head_gives_the_same(device):
    tensors = {name: tensor.to(device) for name, tensor in pairs().items()}
    _, expected = with_gradients(kernels.linear_preference, tensors, device)
    hidden_states = tensors["hidden_states"].requires_grad_()
    chosen, rejected, _ = kernels.linear_preference(**tensors)
    weights = torch.arange(1, 4, device=device)
    total = (weights * chosen).sum() - (2 * weights * rejected).sum()
    (gradient,) = torch.autograd.grad(total, hidden_states)
    torch.testing.assert_close(gradient, expected["hidden_states"], rtol=1e-4, atol=1e-5)


def test_no_pair(device):
    tensors = {name: tensor.to(device) for name, tensor in pairs(()).items()}
    tensors["lengths"] = tensors["lengths"].long()
    chosen, rejected, stats = kernels.linear_preference(**tensors)
    assert chosen.shape == rejected.shape == (0,) and not stats.any()


def test_a_device_does_not_make_the_host_wait():
    tensors = pairs()
    with simulated.registered() as device:
        moved = {name: tensor.to("sim") for name, tensor in tensors.items()}
        moved["hidden_states"].requires_grad_()
        with device.step():
            chosen, rejected, _ = kernels.linear_preference(**moved)
            (chosen - rejected).sum().backward()
        expected = kernels.linear_preference(**tensors).chosen
        torch.testing.assert_close(chosen.detach().cpu(), expected)


def test_memory_is_never_that_of_whole_logits():
    rows, words = 256, 4003
    tensors = pairs((rows, rows), words=words)
    used = allocations(lambda: kernels.linear_preference(**tensors))
    assert used.peak < 2 * rows * words * 4 / 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lengths": torch.tensor([2, 1, 2])}, ValueError, r"lengths has shape \[3\], expected \[2P\]"),
        ({"lengths": torch.tensor([[2, 3]])}, ValueError, r"lengths has shape \[1, 2\]"),
        ({"lengths": torch.tensor([2, 3]).int()}, TypeError, r"lengths has dtype torch\.int32"),
        ({"lengths": torch.tensor([2, 2])}, ValueError, "lengths add up to 4 with 2 the least, expected 5"),
        ({"lengths": torch.tensor([6, -1])}, ValueError, "lengths add up to 5 with -1 the least"),
        ({"targets": torch.tensor([0, 1, 2, 3, 7])}, IndexError, r"targets lie in \[0, 7\]"),
        ({"weight": torch.zeros(7, 4)}, ValueError, r"weight has shape \[7, 4\]"),
    ],
    ids=str,
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    tensors = head((5, 3, 7)) | {"lengths": torch.tensor([2, 3])}
    with pytest.raises(error, match=message):
        kernels.linear_preference(**(tensors | changes))
