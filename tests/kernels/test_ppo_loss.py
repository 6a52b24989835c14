from __future__ import annotations

import math

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import Stat
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "ppo_loss"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(), (1,), (31,), (33, 127), (2, 3, 129)]
LEAVES = ("logprobs", "values", "entropy")
COUNTS = [Stat.CLIPPED, Stat.VALUE_CLIPPED, Stat.TOKENS, Stat.VALUE_TOKENS]

EVERYTHING = {
    "cliprange_high": 0.3,
    "dual_clip": 1.5,
    "log_ratio_clamp": 0.6,
    "entropy_coef": 0.02,
    "kl_coef": 0.3,
}
OPTIONS = {
    "defaults": {},
    "narrow clip": {"cliprange": 0.05},
    "no room at all": {"cliprange": 0.0},
    "asymmetric clip": {"cliprange": 0.2, "cliprange_high": 0.5},
    "dual clip": {"dual_clip": 1.2},
    "log-ratio clamp": {"log_ratio_clamp": 0.4, "cliprange": 1.0},
    "value unclipped": {"cliprange_value": None},
    "value clip narrow": {"cliprange_value": 0.01},
    "value coefficient": {"vf_coef": 2.5},
    "no value loss": {"vf_coef": 0.0},
    "entropy bonus": {"entropy_coef": 0.5},
    "k1 in the loss": {"kl_coef": 0.7, "kl_estimator": "k1"},
    "k2 in the loss": {"kl_coef": 0.7, "kl_estimator": "k2"},
    "k3 in the loss": {"kl_coef": 0.7, "kl_estimator": "k3"},
    "k1 watched": {"kl_estimator": "k1"},
    "denominators": {"denominator": 1000.0, "value_denominator": 77},
    "everything": dict(**EVERYTHING, denominator=123.0),
}


def batch(shape=(9, 33), dtype=torch.float32, seed=0):
    """Every tensor that ppo_loss takes; some tokens fall on every side of every clip."""
    torch.manual_seed(seed)
    old_logprobs, old_values = -3 * torch.rand(shape), torch.randn(shape)
    tensors = {
        "logprobs": old_logprobs + 0.4 * torch.randn(shape),
        "old_logprobs": old_logprobs,
        "advantages": torch.randn(shape) - 0.2,
        "values": old_values + 0.3 * torch.randn(shape),
        "old_values": old_values,
        "returns": old_values + torch.randn(shape),
        "entropy": 3 * torch.rand(shape),
        "ref_logprobs": old_logprobs + 0.4 * torch.randn(shape),
        "weights": 0.5 + torch.rand(shape),
        "token_weights": 0.3 + torch.rand(shape),
    }
    masks = {"mask": torch.rand(shape) > 0.3, "value_mask": torch.rand(shape) > 0.2}
    for mask in masks.values():
        mask.view(-1)[:1] = True
    return {name: tensor.to(dtype) for name, tensor in tensors.items()} | masks


def plain(
    *,
    logprobs,
    old_logprobs,
    advantages,
    mask,
    values=None,
    old_values=None,
    returns=None,
    value_mask=None,
    entropy=None,
    ref_logprobs=None,
    weights=None,
    token_weights=None,
    denominator=None,
    value_denominator=None,
    cliprange=0.2,
    cliprange_high=None,
    dual_clip=None,
    log_ratio_clamp=None,
    cliprange_value=0.2,
    vf_coef=0.1,
    entropy_coef=0.0,
    kl_coef=0.0,
    kl_estimator="k3",
):
    """Loss and stats from the kept tokens alone, at the inputs' precision (float32 for bfloat16)."""

    def kept(tensor, mask=mask):
        return tensor[mask].float() if tensor.dtype == torch.bfloat16 else tensor[mask]

    value_mask = mask if value_mask is None else value_mask
    share = 1.0 if token_weights is None else kept(token_weights)
    if denominator is None:
        denominator = max((share * mask[mask]).sum().item(), 1)
    value_denominator = max(value_mask.sum().item(), 1) if value_denominator is None else value_denominator
    high = cliprange if cliprange_high is None else cliprange_high

    log_ratio = kept(logprobs) - kept(old_logprobs)
    if log_ratio_clamp is not None:
        log_ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp)
    ratio, advantage = torch.exp(log_ratio), kept(advantages)
    clipped_surrogate = torch.clamp(ratio, 1 - cliprange, 1 + high) * advantage
    surrogate = torch.min(ratio * advantage, clipped_surrogate)
    is_clipped = clipped_surrogate < ratio * advantage
    if dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.max(surrogate, dual_clip * advantage), surrogate)
    if weights is not None:
        surrogate = surrogate * kept(weights)

    zero = surrogate.new_zeros(1)
    value_loss, value_is_clipped, bonus, kl = zero, zero, zero, zero
    if values is not None:
        value, old_value, target = (kept(tensor, value_mask) for tensor in (values, old_values, returns))
        square = clipped_square = (value - target) ** 2
        if cliprange_value is not None:
            step = torch.clamp(value - old_value, -cliprange_value, cliprange_value)
            clipped_square = (old_value + step - target) ** 2
            # the same value where nothing is clipped, so that rounding does not pick a side
            clipped_square = torch.where(step == value - old_value, square, clipped_square)
        value_loss, value_is_clipped = 0.5 * torch.max(square, clipped_square), clipped_square > square
    if entropy is not None:
        bonus = kept(entropy)
    if ref_logprobs is not None:
        r = kept(ref_logprobs) - kept(logprobs)
        kl = {"k1": -r, "k2": 0.5 * r**2, "k3": torch.expm1(r) - r}[kl_estimator]
    loss = ((-surrogate - entropy_coef * bonus + kl_coef * kl) * share).sum() / denominator
    loss = loss + vf_coef * value_loss.sum() / value_denominator
    terms = (-surrogate, value_loss, bonus, kl, 0.5 * log_ratio**2, ratio, is_clipped, value_is_clipped)
    counts = (mask.sum().double(), value_mask.sum().double())
    return loss, torch.stack([*(term.double().sum() for term in terms), *counts]).detach()


def with_gradients(function, tensors, device="cpu", dtype=None, **options):
    """Loss, stats and the gradients of 1.7 x loss in every leaf given."""
    tensors = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    leaves = {name: tensors[name].detach().requires_grad_() for name in LEAVES if name in tensors}
    loss, stats = function(**(tensors | leaves), **options)
    return (
        loss,
        stats,
        dict(zip(leaves, torch.autograd.grad(1.7 * loss, leaves.values(), allow_unused=True), strict=True)),
    )


def assert_right(tensors, device, **options):
    dtype = tensors["logprobs"].dtype
    loss, stats, gradients = with_gradients(kernels.ppo_loss, tensors, device, **options)
    plain_loss, plain_stats, plain_gradients = with_gradients(plain, tensors, **options)
    exact_loss, exact_stats, exact_gradients = with_gradients(plain, tensors, dtype=torch.float64, **options)
    assert_as_good_as(loss, plain_loss, exact_loss, name="loss")
    assert stats.dtype == torch.float64 and stats.shape == (len(Stat),)
    assert stats[COUNTS].tolist() == plain_stats[COUNTS].tolist()
    # the sums of float32 terms are as good as float32 on the scale of the token count
    narrow = torch.promote_types(dtype, torch.float32)
    assert_as_good_as(stats.to(narrow), plain_stats.to(narrow), exact_stats, name="stats")
    for name, exact in exact_gradients.items():
        exact = torch.zeros_like(exact_gradients["logprobs"]) if exact is None else exact
        same = exact.to(dtype) if plain_gradients[name] is None else plain_gradients[name]
        assert_as_good_as(gradients[name], same, exact, name=f"gradient of {name}")


def test_two_tokens_by_hand(device):
    # Policy (A = 1, -2; ratio 1.5, 0.9; clip 0.2): max(-1.5, -1.2) = -1.2, clipped, no gradient;
    #   max(1.8, 1.8) = 1.8, gradient -A ratio / 2 = 0.9. Sum 0.6.
    # Value: V 1, old 0, R 2: max(1, (0.2 - 2)^2 = 3.24) / 2 = 1.62, clipped, no gradient;
    #   V 1, old 0.9, R 0.5: 0.25 / 2 = 0.125, gradient 0.1 x 0.5 / 2 = 0.025. Sum 1.745.
    # Entropy: sum 3, gradient -0.01 / 2 each.
    # KL (k2, log p - log p_ref = 0.2, -0.4): 0.02 + 0.08;
    #   gradient 0.5 x 0.2 / 2 = 0.05, 0.5 x -0.4 / 2 = -0.1.
    # Loss: (0.6 + 0.1 x 1.745 - 0.01 x 3 + 0.5 x 0.1) / 2 = 0.39725.
    old = torch.tensor([-1.0, -2.0], device=device)
    logprobs = (old + torch.tensor([1.5, 0.9], device=device).log()).requires_grad_()

    def tensor(*numbers):
        return torch.tensor(numbers, dtype=torch.float32, device=device)

    values, entropy = tensor(1, 1).requires_grad_(), tensor(1, 2).requires_grad_()
    loss, stats = kernels.ppo_loss(
        logprobs,
        old,
        tensor(1, -2),
        tensor(1, 1).bool(),
        values=values,
        old_values=tensor(0, 0.9),
        returns=tensor(2, 0.5),
        entropy=entropy,
        ref_logprobs=logprobs.detach() - tensor(0.2, -0.4),
        entropy_coef=0.01,
        kl_coef=0.5,
        kl_estimator="k2",
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.39725, rel=1e-6)
    assert logprobs.grad.tolist() == pytest.approx([0.05, 0.8], rel=1e-6)
    assert values.grad.tolist() == pytest.approx([0, 0.025], rel=1e-6)
    assert entropy.grad.tolist() == pytest.approx([-0.005, -0.005], rel=1e-6)
    approx_kl = (math.log(1.5) ** 2 + math.log(0.9) ** 2) / 2
    assert stats.tolist() == pytest.approx([0.6, 1.745, 3, 0.1, approx_kl, 2.4, 1, 1, 2, 2], rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "expected", "gradient"),
    [
        (1.25, 1, {}, -1.2, 0),
        (1.25, 1, {"cliprange_high": 0.3}, -1.25, -1.25),  # room above
        (0.75, -1, {"cliprange_high": 0.3}, 0.8, 0),  # and none below
        (1.25, -1, {}, 1.25, 1.25),  # the pessimistic side is never clipped
        (0.75, 1, {}, -0.75, -0.75),
        (3, -1, {}, 3, 3),
        (3, -1, {"dual_clip": 2}, 2, 0),
        (1.5, -1, {"dual_clip": 2}, 1.5, 1.5),
        (3, 1, {"dual_clip": 2}, -1.2, 0),  # dual clip is for negative advantages
        (5, -1, {"log_ratio_clamp": math.log(2)}, 2, 0),
        (0.1, 1, {"log_ratio_clamp": math.log(2)}, -0.5, 0),
        (1.9, -1, {"log_ratio_clamp": math.log(2)}, 1.9, 1.9),
        (3, -1, {"weights": 0.5}, 1.5, 1.5),
        (3, -1, {"weights": 0.5, "dual_clip": 2}, 1, 0),  # weights scale the bounded loss
        (3, -1, {"token_weights": 0.5}, 1.5, 1.5),  # over a denominator of at least one
        (3, -1, {"token_weights": 2}, 3, 3),  # over their sum
        (3, -1, {"token_weights": 2, "weights": 0.5}, 1.5, 1.5),
        (1, 1, {}, -1, -1),  # ratio one on the first minibatch: a plain policy gradient
        (1, 1, {"cliprange": 0}, -1, -1),
    ],
)
def test_one_token_by_hand(device, ratio, advantage, options, expected, gradient):
    def tensor(number):
        return torch.tensor([number], dtype=torch.float32, device=device)

    options = {name: tensor(value) if "weights" in name else value for name, value in options.items()}
    logprobs = tensor(math.log(ratio)).requires_grad_()
    loss, _ = kernels.ppo_loss(logprobs, tensor(0.0), tensor(advantage), tensor(1).bool(), **options)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-6)


@pytest.mark.parametrize(
    ("sequence_means", "denominator", "expected"),
    [(False, None, 3.0), (True, None, 4.0), (True, 4, 2.0), (False, 8, 1.5)],
    ids=["DAPO, over tokens", "GRPO, over sequences", "GRPO, of four sequences", "Dr. GRPO, over a constant"],
)
def test_aggregation_by_hand(device, sequence_means, denominator, expected):
    # Sequences of three tokens and of one, with losses 1 + 2 + 3 and 6: the policy's, the entropy's, then the KL's.
    losses = torch.tensor([[1.0, 2.0, 3.0], [6.0, 9.0, 9.0]], device=device)
    mask = torch.tensor([[True, True, True], [True, False, False]], device=device)
    zero = torch.zeros_like(losses)
    share = (1 / mask.sum(1, keepdim=True)).expand_as(losses) if sequence_means else None

    def loss(advantages=zero, **options):
        given = {"token_weights": share, "denominator": denominator} | options
        return kernels.ppo_loss(zero, zero, advantages, mask, **given).loss.item()

    assert loss(-losses) == pytest.approx(expected)
    assert loss(entropy=losses, entropy_coef=-1.0) == pytest.approx(expected)
    assert loss(ref_logprobs=-losses, kl_coef=1.0, kl_estimator="k1") == pytest.approx(expected)


def test_token_weights_are_in_no_statistic(device):
    tensors = batch()
    _, stats, _ = with_gradients(kernels.ppo_loss, tensors, device, **EVERYTHING)
    del tensors["token_weights"]
    _, expected, _ = with_gradients(kernels.ppo_loss, tensors, device, **EVERYTHING)
    assert torch.equal(stats, expected)


def test_a_ratio_of_whole_sequences(device):
    # GSPO: the mean over sequences of min(s A, clip(s) A), s = exp(mean over tokens of the log-ratios).
    tensors = {name: tensor.to(device) for name, tensor in batch((6, 9)).items()}
    mask, old_logprobs = tensors["mask"], tensors["old_logprobs"]
    advantage, share = tensors["advantages"][:, :1], 1 / mask.sum(1, keepdim=True)
    logprobs = tensors["logprobs"].requires_grad_()

    def log_ratio(logprobs):
        return (share * (logprobs - old_logprobs)).where(mask, 0).sum(1, keepdim=True)

    exact_logprobs = logprobs.detach().double().requires_grad_()
    ratio = log_ratio(exact_logprobs).exp()
    assert not (ratio - 1).abs().lt(0.05).all() and (ratio - 1).abs().lt(0.05).any()
    exact = -torch.min(ratio * advantage, ratio.clamp(0.95, 1.05) * advantage).mean()
    exact.backward()

    loss, _ = kernels.ppo_loss(
        logprobs,
        (logprobs - log_ratio(logprobs)).detach(),
        advantage.expand_as(logprobs),
        mask,
        token_weights=share.expand_as(logprobs),
        cliprange=0.05,
    )
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(logprobs.grad.double(), exact_logprobs.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_with_every_option(device, dtype, options):
    assert_right(batch(dtype=dtype), device, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, dtype, shape):
    assert_right(batch(shape, dtype), device, **EVERYTHING)


@pytest.mark.parametrize(
    "absent",
    [
        ("weights",),
        ("token_weights",),
        ("weights", "token_weights"),
        ("entropy",),
        ("ref_logprobs",),
        ("value_mask",),
        ("values", "old_values", "returns"),
        (
            "values",
            "old_values",
            "returns",
            "value_mask",
            "entropy",
            "ref_logprobs",
            "weights",
            "token_weights",
        ),
    ],
    ids=" ".join,
)
def test_tensors_that_may_be_left_out(device, absent):
    tensors = {name: tensor for name, tensor in batch().items() if name not in absent}
    assert_right(tensors, device, dual_clip=1.5)


def test_non_contiguous_inputs(device):
    tensors = batch((34, 66))
    assert_right({name: tensor.t()[::2, 1:] for name, tensor in tensors.items()}, device, **EVERYTHING)
    tensors["advantages"] = tensors["advantages"][:, :1].expand(34, 66)  # one advantage a sequence
    tensors["mask"] = tensors["mask"][:1].expand(34, 66)
    assert_right(tensors, device, **EVERYTHING)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_extreme_logprobs(device, offset):
    tensors = batch()
    tensors["logprobs"][0, 0] = tensors["old_logprobs"][0, 0] + offset
    tensors["advantages"][0, 0] = 1.0
    tensors["mask"][0, 0] = True
    del tensors["ref_logprobs"]
    assert_right(tensors, device, log_ratio_clamp=20.0, dual_clip=3.0)
    # Without the clamp the ratio is infinite or zero. Clipped, it has no gradient (autograd makes it NaN).
    loss, _, gradients = with_gradients(kernels.ppo_loss, tensors, device)
    assert loss.isfinite() and gradients["logprobs"].isfinite().all() and gradients["logprobs"][0, 0] == 0


def test_all_advantages_zero(device):
    tensors = batch()
    tensors["advantages"].zero_()
    assert_right(tensors, device, **EVERYTHING)
    only_policy = {name: tensors[name] for name in ("logprobs", "old_logprobs", "advantages", "mask")}
    loss, stats, gradients = with_gradients(kernels.ppo_loss, only_policy, device)
    assert loss == 0 and stats[Stat.POLICY_LOSS] == 0 and stats[Stat.CLIPPED] == 0
    assert not gradients["logprobs"].any()


def test_ratio_is_one_where_the_policy_has_not_moved(device):
    tensors = batch()
    tensors["logprobs"] = tensors["old_logprobs"].clone()
    assert_right(tensors, device)
    _, stats, _ = with_gradients(kernels.ppo_loss, tensors, device)
    assert stats[Stat.RATIO] == stats[Stat.TOKENS] and stats[Stat.APPROX_KL] == stats[Stat.CLIPPED] == 0


def test_value_mask_and_mask_are_separate(device):
    tensors = batch()
    tensors["value_mask"] = ~tensors["mask"]
    assert_right(tensors, device, **EVERYTHING)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5)], ids=str)
def test_empty(device, shape):
    loss, stats, gradients = with_gradients(kernels.ppo_loss, batch(shape), device, **EVERYTHING)
    assert loss == 0 and not stats.any()
    assert all(gradient.shape == shape for gradient in gradients.values())


@pytest.mark.parametrize("poison", [0.0, float("nan")])
def test_fully_masked(device, poison):
    tensors = {
        name: tensor + poison if tensor.is_floating_point() else tensor & False
        for name, tensor in batch().items()
    }
    loss, stats, gradients = with_gradients(kernels.ppo_loss, tensors, device, **EVERYTHING)
    assert loss == 0 and not stats.any()
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{}, EVERYTHING | {"kl_estimator": "k2"}], ids=["defaults", "everything"])
def test_masked_positions_do_not_leak(device, options, poison):
    tensors = batch()
    poisoned = {
        name: tensor.masked_fill(
            ~tensors["value_mask" if name in ("values", "old_values", "returns") else "mask"], poison
        )
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    loss, stats, gradients = with_gradients(kernels.ppo_loss, tensors, device, **options)
    with_poison = with_gradients(kernels.ppo_loss, tensors | poisoned, device, **options)
    assert torch.equal(with_poison[0], loss) and torch.equal(with_poison[1], stats)
    for name, gradient in gradients.items():
        assert torch.equal(with_poison[2][name], gradient), name
        assert not gradient[~tensors["value_mask" if name == "values" else "mask"].to(device)].any(), name


def test_what_is_only_watched_reaches_neither_loss_nor_gradients(device):
    # exp(100) overflows float32: k3 of a token that the reference favours by 100 nats is infinite.
    tensors = batch()
    tensors["mask"][0, 0] = tensors["value_mask"][0, 0] = True
    clean = with_gradients(kernels.ppo_loss, tensors, device, vf_coef=0.0)
    tensors["ref_logprobs"][0, 0] = tensors["logprobs"][0, 0] + 100
    tensors["returns"][0, 0] = float("inf")
    tensors["entropy"][0, 0] = float("inf")
    loss, stats, gradients = with_gradients(kernels.ppo_loss, tensors, device, vf_coef=0.0)
    assert stats[[Stat.KL, Stat.VALUE_LOSS, Stat.ENTROPY]].isinf().all()
    assert torch.equal(loss, clean[0])
    for name, gradient in gradients.items():
        assert torch.equal(gradient, clean[2][name]), name


@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_with_the_whole_denominators_add_up(device, as_tensor):
    tensors = {name: tensor.to(device) for name, tensor in batch((8, 33)).items()}
    whole_loss, whole_stats, whole_gradients = with_gradients(kernels.ppo_loss, tensors, device, **EVERYTHING)
    counts = {
        "denominator": tensors["token_weights"][tensors["mask"]].sum(dtype=torch.float64),
        "value_denominator": tensors["value_mask"].sum(),
    }
    if not as_tensor:
        counts = {name: count.item() for name, count in counts.items()}
    parts = [
        with_gradients(
            kernels.ppo_loss, {n: t[i : i + 3] for n, t in tensors.items()}, device, **counts, **EVERYTHING
        )
        for i in (0, 3, 6)
    ]
    torch.testing.assert_close(sum(loss for loss, _, _ in parts), whole_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(stats for _, stats, _ in parts), whole_stats, rtol=1e-13, atol=1e-12)
    for name, gradient in whole_gradients.items():
        assert torch.equal(torch.cat([gradients[name] for _, _, gradients in parts]), gradient), name


def test_the_denominator_is_at_least_one(device):
    tensors = batch()
    for name in ("denominator", "value_denominator"):
        zero, one = (with_gradients(kernels.ppo_loss, tensors, device, **{name: n})[0] for n in (0, 1))
        assert torch.equal(zero, one)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck(device, options):
    tensors = {name: tensor.to(device) for name, tensor in batch((3, 5), torch.float64).items()}

    def loss(logprobs, values, entropy):
        leaves = {"logprobs": logprobs, "values": values, "entropy": entropy}
        return kernels.ppo_loss(**(tensors | leaves), **options).loss

    assert torch.autograd.gradcheck(loss, [tensors[name].requires_grad_() for name in LEAVES])


def test_gradients_only_where_asked(device):
    tensors = {name: tensor.to(device) for name, tensor in batch().items()}
    loss, stats = kernels.ppo_loss(**tensors)
    assert not loss.requires_grad and not stats.requires_grad
    for name in LEAVES:
        leaf = tensors[name].clone().requires_grad_()
        loss, stats = kernels.ppo_loss(**(tensors | {name: leaf}), entropy_coef=0.1)
        assert not stats.requires_grad
        loss.backward()
        _, _, expected = with_gradients(kernels.ppo_loss, tensors, device, entropy_coef=0.1)
        torch.testing.assert_close(1.7 * leaf.grad, expected[name])


def test_a_float16_loss_scale_does_not_overflow(device):
    tensors = batch(dtype=torch.float16)
    tensors = {name: tensors[name].to(device) for name in ("logprobs", "old_logprobs", "advantages", "mask")}
    logprobs = tensors["logprobs"].requires_grad_()
    loss, _ = kernels.ppo_loss(**tensors, denominator=1000)
    (65536 * loss).backward()  # torch.amp.GradScaler's first scale, infinite in float16
    assert logprobs.grad.isfinite().all() and logprobs.grad.abs().max() > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_kept_for_the_backward_is_the_gradients(device, dtype):
    tensors = {name: tensor.to(device) for name, tensor in batch((64, 128), dtype).items()}
    for name in LEAVES:
        tensors[name].requires_grad_()
    used = allocations(lambda: kernels.ppo_loss(**tensors, **EVERYTHING))
    assert used.kept <= len(LEAVES) * 64 * 128 * dtype.itemsize + 1024


def arguments_of_the_operation(device, transposed=False):
    tensors = {name: tensor.to(device) for name, tensor in batch((4, 7)).items()}
    if transposed:
        tensors = {name: tensor.t() for name, tensor in tensors.items()}
    for name in LEAVES:
        tensors[name].requires_grad_()
    names = [
        "logprobs",
        "old_logprobs",
        "advantages",
        "mask",
        "values",
        "old_values",
        "returns",
        "value_mask",
    ]
    names += ["entropy", "ref_logprobs", "weights", "token_weights"]
    denominators = torch.tensor([10.0, 11.0], dtype=torch.float64, device=device)
    coefficients = [0.2, 0.3, 3.0, 5.0, 0.2, 0.1, 0.01, 0.1]
    return [*(tensors[name] for name in names), denominators, *coefficients, "k3"]


@pytest.mark.parametrize("transposed", [False, True])
def test_opcheck(device, transposed):
    torch.library.opcheck(torch.ops.fastrlhf.ppo_loss.default, arguments_of_the_operation(device, transposed))


def test_opcheck_without_the_tensors_that_may_be_left_out(device):
    arguments = arguments_of_the_operation(device)
    for position in (4, 5, 6, 8, 9, 10, 11):
        arguments[position] = None
    torch.library.opcheck(torch.ops.fastrlhf.ppo_loss.default, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_tensors(dtype):
    tensors = {name: tensor.to("meta") for name, tensor in batch((3, 5), dtype).items()}
    loss, stats = kernels.ppo_loss(**tensors)
    assert loss.is_meta and loss.shape == () and loss.dtype == torch.promote_types(dtype, torch.float32)
    assert stats.shape == (len(Stat),) and stats.dtype == torch.float64


def test_compiles_whole(device):
    tensors = {name: tensor.to(device) for name, tensor in batch((4, 7)).items()}

    def scaled(**tensors):
        return kernels.ppo_loss(**(tensors | {"logprobs": 1.1 * tensors["logprobs"]}), **EVERYTHING)

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    loss, stats, gradients = with_gradients(scaled, tensors, device)
    compiled_loss, compiled_stats, compiled_gradients = with_gradients(compiled, tensors, device)
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled_stats, stats)
    for name in LEAVES:
        torch.testing.assert_close(compiled_gradients[name], gradients[name])


@pytest.mark.parametrize(
    "name", ["old_logprobs", "advantages", "values", "entropy", "ref_logprobs", "weights", "token_weights"]
)
def test_errors_name_a_tensor_that_does_not_fit(name):
    tensors = batch((2, 3))
    with pytest.raises(
        ValueError, match=rf"{name} has shape \[6\], expected the shape of logprobs = \[2, 3\]"
    ):
        kernels.ppo_loss(**(tensors | {name: tensors[name].view(6)}))
    with pytest.raises(TypeError, match=rf"{name} has dtype torch\.float64, expected one of torch\.float32"):
        kernels.ppo_loss(**(tensors | {name: tensors[name].double()}))
    with pytest.raises(ValueError, match=rf"on one device: logprobs on cpu,.*{name} on meta"):
        kernels.ppo_loss(**(tensors | {name: tensors[name].to("meta")}))


@pytest.mark.parametrize("name", ["mask", "value_mask"])
def test_errors_name_a_mask_that_does_not_fit(name):
    tensors = batch((2, 3))
    with pytest.raises(
        ValueError, match=rf"^{name} has shape \[6\], expected the shape of logprobs = \[2, 3\]"
    ):
        kernels.ppo_loss(**(tensors | {name: tensors[name].view(6)}))
    with pytest.raises(TypeError, match=rf"^{name} has dtype torch\.int64, expected one of torch\.bool"):
        kernels.ppo_loss(**(tensors | {name: tensors[name].long()}))


@pytest.mark.parametrize("missing", ["values", "old_values", "returns"])
def test_errors_name_the_value_tensor_that_is_missing(missing):
    tensors = batch((2, 3))
    del tensors[missing]
    with pytest.raises(ValueError, match=f"values, old_values and returns go together; missing: {missing}"):
        kernels.ppo_loss(**tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cliprange": -0.1}, r"^cliprange is -0\.1, expected at least 0"),
        ({"cliprange_high": -0.1}, r"cliprange_high is -0\.1, expected at least 0"),
        ({"cliprange": float("nan")}, r"cliprange is nan, expected at least 0"),
        ({"dual_clip": 1.0}, r"dual_clip is 1\.0, expected more than 1"),
        ({"log_ratio_clamp": 0.0}, r"log_ratio_clamp is 0\.0, expected more than 0"),
        ({"cliprange_value": -1.0}, r"cliprange_value is -1\.0, expected at least 0"),
        ({"kl_estimator": "k4"}, r"kl_estimator is 'k4', expected one of k1, k2, k3"),
        ({"entropy": None, "entropy_coef": 0.1}, r"entropy_coef is 0\.1, but entropy is None"),
        ({"ref_logprobs": None, "kl_coef": 0.1}, r"kl_coef is 0\.1, but ref_logprobs is None"),
    ],
)
def test_errors_name_the_option_its_value_and_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        kernels.ppo_loss(**(batch((2, 3)) | options))


def test_logprobs_must_be_floats():
    tensors = batch((2, 3))
    with pytest.raises(
        TypeError, match=r"logprobs has dtype torch\.int64, expected one of .*torch\.bfloat16"
    ):
        kernels.ppo_loss(**(tensors | {"logprobs": tensors["logprobs"].long()}))
