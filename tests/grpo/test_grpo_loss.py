"""The losses against the equations, written out completion by completion in float64, and their gradients."""

import math

import pytest
import torch

from fastrlhf.grpo.experience import LearnedFrom
from fastrlhf.grpo.loss import GRPOLoss, Minibatch, RLOOLoss, clip_sums
from fastrlhf.models.actor_critic import ActorCriticOutput

EPSILON, HIGH, DELTA, BETA, LONGEST = 0.1, 0.2, 1.5, 0.3, 5
LENGTHS = torch.tensor([5, 2, 0, 3])
MASK = torch.arange(5) < LENGTHS[:, None]
ADVANTAGES = torch.tensor([1.5, -0.5, 1.0, -2.0])
ROWS, MICRO_BATCHES, TOKENS = 8, 2, 17.0
DEFAULTS = {
    "kind": "dapo",
    "level": "token",
    "epsilon": EPSILON,
    "epsilon_high": HIGH,
    "delta": None,
    "beta": 0.0,
    "corrects_kl": True,
    "top_entropy": 1.0,
    "off_policy_threshold": None,
    "longest": LONGEST,
}
CASES = {
    **{kind: {"kind": kind} for kind in ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")},
    **{f"{kind} of sequences": {"kind": kind, "level": "sequence"} for kind in ("grpo", "dapo", "luspo")},
    "delta": {"delta": DELTA},
    "kl": {"beta": BETA, "kind": "grpo"},
    "plain kl": {"beta": BETA, "corrects_kl": False},
    "kl of sequences": {"beta": BETA, "level": "sequence"},
    "high entropy": {"top_entropy": 0.4},
    "high entropy of sequences": {"top_entropy": 0.4, "level": "sequence"},
    "off-policy": {"off_policy_threshold": 0.05},
    "bonus": {},
    "correction": {},
}


def tensors():
    random = torch.Generator().manual_seed(2)
    logprobs = -torch.rand(4, 5, generator=random) - 0.5
    old = logprobs + 0.4 * torch.randn(4, 5, generator=random)
    ref = logprobs + 0.4 * torch.randn(4, 5, generator=random)
    entropy, weights = torch.rand(2, 4, 5, generator=random)
    return [torch.where(MASK, tensor, 0.0) for tensor in (logprobs, old, ref, entropy, weights)]


def by_the_equations(options, logprobs, old, ref, entropy, weights, entropy_coef):
    """The loss in float64, tokens one by one."""
    total, kl_total = 0.0, 0.0
    threshold = torch.quantile(entropy.detach()[MASK], 1 - options["top_entropy"])
    among = MASK & (entropy.detach() >= threshold)
    for row, n in enumerate(LENGTHS.tolist()):
        log_ratio, advantage = logprobs[row, :n] - old[row, :n], float(ADVANTAGES[row])
        if options["level"] == "sequence" and n:
            log_ratio = log_ratio.mean().expand(n)
        ratio = log_ratio.exp()
        clipped = advantage * ratio.clamp(1 - EPSILON, 1 + HIGH)
        bounded = ratio if options["delta"] is None else ratio.clamp(max=options["delta"])
        losses = -torch.min(advantage * bounded, clipped) * among[row, :n]
        if weights is not None:
            losses = losses * weights[row, :n]
        if options["off_policy_threshold"] is not None and n and advantage < 0:
            apart = float((old[row, :n] - logprobs[row, :n]).mean().detach())
            losses = losses * (apart <= options["off_policy_threshold"])
        kl = (ref[row, :n] - logprobs[row, :n]).exp() - 1 - (ref[row, :n] - logprobs[row, :n])
        kl = kl * ratio if options["corrects_kl"] else kl
        share = 1 / n if options["kind"] == "grpo" and n else 1.0
        total = total + share * losses.sum()
        kl_total = kl_total + share * kl.sum()
    denominator = {
        "grpo": ROWS,
        "luspo": ROWS,
        "dr_grpo": ROWS * LONGEST,
        "dapo": TOKENS,
        "bnpo": int(LENGTHS.sum()) * MICRO_BATCHES,
    }[options["kind"]]
    bonus = entropy[among].mean() / MICRO_BATCHES
    return (total + options["beta"] * kl_total) / denominator - entropy_coef * bonus


@pytest.mark.parametrize("case", CASES)
def test_grpo(case):
    options = DEFAULTS | CASES[case]
    entropy_coef = 0.2 if case == "bonus" else 0.0
    logprobs, old, ref, entropy, weights = tensors()
    weights = weights if case == "correction" else None
    ours = [logprobs.clone().requires_grad_(), entropy.clone().requires_grad_()]
    found = GRPOLoss(**options)(
        ActorCriticOutput(*ours, None),
        LearnedFrom(old, ref if options["beta"] else None, ADVANTAGES, MASK, weights),
        Minibatch(ROWS, torch.tensor(TOKENS), MICRO_BATCHES),
        entropy_coef,
    )
    exact = [tensor.double().requires_grad_() for tensor in (logprobs, entropy)]
    arguments = [exact[0], old.double(), ref.double(), exact[1]]
    expected = by_the_equations(
        options, *arguments, None if weights is None else weights.double(), entropy_coef
    )
    torch.testing.assert_close(found.loss.double(), expected, rtol=1e-5, atol=1e-7)
    found.loss.backward()
    expected.backward()
    for actual, wanted in zip(ours, exact, strict=True):
        gradient = torch.zeros_like(wanted) if wanted.grad is None else wanted.grad
        if actual.grad is not None or gradient.any():
            torch.testing.assert_close(actual.grad.double(), gradient, rtol=1e-5, atol=1e-7)


def test_rloo():
    logprobs, old, _, entropy, weights = tensors()
    ours, exact = logprobs.clone().requires_grad_(), logprobs.double().requires_grad_()
    found = RLOOLoss(EPSILON, HIGH)(
        ActorCriticOutput(ours, entropy, None),
        LearnedFrom(old, None, ADVANTAGES, MASK, weights),
        Minibatch(ROWS, torch.tensor(TOKENS), MICRO_BATCHES),
    )
    expected = 0.0
    for row, n in enumerate(LENGTHS.tolist()):
        ratio = (exact[row, :n] - old[row, :n].double()).sum().exp()
        clipped = ADVANTAGES[row] * ratio.clamp(1 - EPSILON, 1 + HIGH)
        factor = weights[row, :n].double().prod()
        expected = expected - factor * torch.min(ADVANTAGES[row] * ratio, clipped) / ROWS
    torch.testing.assert_close(found.loss.double(), expected, rtol=1e-5, atol=1e-7)
    found.loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_the_policy_that_sampled_is_this_one_if_no_other_is_given():
    logprobs, _, _, entropy, _ = tensors()
    logprobs.requires_grad_()
    found = GRPOLoss(**DEFAULTS)(
        ActorCriticOutput(logprobs, entropy, None),
        LearnedFrom(None, None, ADVANTAGES, MASK, None),
        Minibatch(ROWS, torch.tensor(TOKENS), MICRO_BATCHES),
        0.0,
    )
    found.loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.where(MASK, -ADVANTAGES[:, None] / TOKENS, 0.0))


@pytest.mark.parametrize("corrects_kl", [True, False])
def test_what_is_masked_does_not_overflow(corrects_kl):
    logprobs, old, ref, entropy, _ = tensors()
    logprobs = torch.where(MASK, logprobs, -200.0).requires_grad_()
    found = GRPOLoss(**DEFAULTS | {"beta": BETA, "corrects_kl": corrects_kl})(
        ActorCriticOutput(logprobs, entropy, None),
        LearnedFrom(old, ref, ADVANTAGES, MASK, None),
        Minibatch(ROWS, torch.tensor(TOKENS), MICRO_BATCHES),
        0.0,
    )
    found.loss.backward()
    assert found.loss.isfinite() and logprobs.grad.isfinite().all()
    assert not logprobs.grad[~MASK].any()


def test_an_unknown_kind():
    logprobs, old, _, entropy, _ = tensors()
    with pytest.raises(ValueError, match="no loss is called 'cispo'"):
        GRPOLoss(**DEFAULTS | {"kind": "cispo"})(
            ActorCriticOutput(logprobs, entropy, None),
            LearnedFrom(old, None, ADVANTAGES, MASK, None),
            Minibatch(ROWS, torch.tensor(TOKENS), MICRO_BATCHES),
            0.0,
        )


def test_clip_counts():
    ratio = torch.tensor([[0.5, 1.0, 2.0], [0.5, 2.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = {
        n: float(v) for n, v in clip_sums(ratio.log(), torch.tensor([-1.0, 1.0]), mask, 0.2, 0.2).items()
    }
    assert found == {
        "units": 5,
        "below": 1,
        "above": 1,
        "least_below": 0.0,
        "most_above": 0.5,
    }
    empty = clip_sums(torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2, dtype=torch.bool), 0.2, 0.2)
    assert math.isinf(empty["least_below"]) and math.isinf(empty["most_above"])
