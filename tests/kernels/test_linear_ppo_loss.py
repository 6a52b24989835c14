from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import Stat
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "linear_logprob"
ROWS, WIDTH, WORDS = 21, 8, 97


def case(dtype=torch.float32):
    """Head, tokens and what PPO knows of them; log-ratios of about 0.3, some clipped, some masked out."""
    torch.manual_seed(0)
    hidden_states, weight = torch.randn(ROWS, WIDTH), torch.randn(WORDS, WIDTH) / WIDTH**0.5
    targets, bias = torch.randint(WORDS, (ROWS,)), torch.randn(WORDS)
    logprobs = torch.log_softmax(hidden_states @ weight.T + bias, -1)[torch.arange(ROWS), targets]
    old_logprobs, ref_logprobs = logprobs + 0.3 * torch.randn(2, ROWS)
    tensors = {
        "hidden_states": hidden_states,
        "weight": weight,
        "targets": targets,
        "old_logprobs": old_logprobs,
        "advantages": torch.randn(ROWS),
        "mask": torch.arange(ROWS) % 4 != 0,
        "bias": bias,
        "ref_logprobs": ref_logprobs,
    }
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def plain(
    *,
    hidden_states,
    weight,
    targets,
    old_logprobs,
    advantages,
    mask,
    bias,
    ref_logprobs,
    entropy_coef=0.0,
    kl_coef=0.0,
    temperature=1.0,
):
    """The loss from whole logits, as its equation reads (k3 for the KL)."""
    log_p = torch.log_softmax((hidden_states @ weight.T + bias) / temperature, -1)
    logprobs = log_p.gather(1, targets[:, None]).squeeze(1)
    ratio = (logprobs - old_logprobs).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    loss = loss + entropy_coef * (log_p.exp() * log_p).sum(-1)
    log_ratio = ref_logprobs - logprobs
    loss = loss + kl_coef * (log_ratio.exp() - log_ratio - 1)
    return loss[mask].sum() / mask.sum()


def with_gradients(function, tensors, needed, **options):
    leaves = {name: tensors[name].detach().requires_grad_() for name in needed}
    loss = function(**(tensors | leaves), **options)
    loss = loss if torch.is_tensor(loss) else loss.loss
    return {"loss": loss, **dict(zip(needed, torch.autograd.grad(loss, leaves.values()), strict=True))}


@pytest.mark.parametrize(
    "needed", [("hidden_states",), ("hidden_states", "weight", "bias")], ids=["frozen", "trainable"]
)
@pytest.mark.parametrize(
    "options", [{}, {"entropy_coef": 0.1}, {"entropy_coef": 0.1, "kl_coef": 0.2, "temperature": 0.7}], ids=str
)
def test_as_good_as_plain(device, needed, options):
    tensors, exact = (
        {name: t.to(device) for name, t in case(dtype).items()} for dtype in (torch.float32, torch.float64)
    )
    actual = with_gradients(kernels.linear_ppo_loss, tensors, needed, **options)
    same, exact = (
        with_gradients(plain, tensors, needed, **options),
        with_gradients(plain, exact, needed, **options),
    )
    for name in exact:
        assert_as_good_as(actual[name], same[name], exact[name], name=name)


def test_statistics_and_values_are_those_of_the_loss(device):
    tensors = {name: tensor.to(device) for name, tensor in case().items()}
    values, old_values, returns = torch.randn(3, ROWS, device=device).unbind()
    values.requires_grad_()
    given = {"values": values, "old_values": old_values, "returns": returns, "denominator": 50.0}
    loss, stats = kernels.linear_ppo_loss(**tensors, **given, entropy_coef=0.1)
    logprobs, entropy = kernels.linear_logprob(
        tensors["hidden_states"], tensors["weight"], tensors["targets"], bias=tensors["bias"]
    )
    rest = {name: tensors[name] for name in ("old_logprobs", "advantages", "mask", "ref_logprobs")}
    expected = kernels.ppo_loss(logprobs, **rest, **given, entropy=entropy, entropy_coef=0.1)
    assert torch.equal(loss, expected.loss) and torch.equal(stats, expected.stats)
    assert stats[Stat.ENTROPY] > 0
    gradient, expected_gradient = (torch.autograd.grad(x, values)[0] for x in (loss, expected.loss))
    assert gradient.any() and torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize(("entropy_coef", "slopes"), [(0.0, 1), (0.1, 2)])
def test_a_watched_entropy_keeps_nothing(device, entropy_coef, slopes):
    tensors = {name: tensor.to(device) for name, tensor in case().items()}
    tensors["hidden_states"].requires_grad_()
    used = allocations(lambda: kernels.linear_ppo_loss(**tensors, entropy_coef=entropy_coef))
    loss_and_statistics, gradients = 4 + 8 * len(Stat), 2 * 4 * ROWS
    assert used.kept == loss_and_statistics + gradients + slopes * 4 * ROWS * WIDTH


def test_errors_are_those_of_its_parts(device):
    tensors = {name: tensor.to(device) for name, tensor in case().items()}
    with pytest.raises(ValueError, match=r"weight has shape \[97\], expected \[V, D\]"):
        kernels.linear_ppo_loss(**tensors | {"weight": tensors["bias"]})
    with pytest.raises(ValueError, match=r"mask has shape \[20\]"):
        kernels.linear_ppo_loss(**tensors | {"mask": tensors["mask"][1:]})
    with pytest.raises(TypeError, match="entropy"):
        kernels.linear_ppo_loss(**tensors, entropy=tensors["advantages"])


@pytest.mark.parametrize("ref_width", [WIDTH, 5])
def test_the_reference_beside_the_policy(device, ref_width):
    tensors = {name: tensor.to(device) for name, tensor in case().items()}
    hidden_states, weight = (tensors[name].requires_grad_() for name in ("hidden_states", "weight"))
    ref_hidden_states, ref_weight, ref_bias = (
        torch.randn(size, device=device, requires_grad=True)
        for size in ((ROWS, ref_width), (WORDS, ref_width), WORDS)
    )
    both = kernels.linear_logprob_with_reference(
        *(hidden_states, weight, ref_hidden_states, ref_weight, tensors["targets"]),
        bias=tensors["bias"],
        ref_bias=ref_bias,
        temperature=0.7,
    )
    options = {"targets": tensors["targets"], "temperature": 0.7}
    policy = kernels.linear_logprob(hidden_states, weight, bias=tensors["bias"], **options)
    reference = kernels.linear_logprob(ref_hidden_states, ref_weight, bias=ref_bias, **options)
    assert torch.equal(both.logprobs, policy.logprobs) and torch.equal(both.entropy, policy.entropy)
    assert torch.equal(both.ref_logprobs, reference.logprobs) and not both.ref_logprobs.requires_grad
    assert both.logprobs.requires_grad and both.entropy.requires_grad


def test_errors_of_the_reference_name_it():
    tensors = case()
    with pytest.raises(ValueError, match=r"ref_hidden_states has shape \[21\]"):
        kernels.linear_logprob_with_reference(
            *(tensors["hidden_states"], tensors["weight"], tensors["advantages"], tensors["weight"]),
            tensors["targets"],
        )
