"""Inputs of `attention`, and attention as most model code writes it, with its gradients: what kernels are held to."""

from __future__ import annotations

from itertools import pairwise

import torch

from fastrlhf import kernels
from tests.support.precision import assert_as_good_as

LEAVES = ("query", "key", "value")


def attention_case(lengths, heads=2, key_heads=1, width=32, dtype=torch.float32, skip=None, seed=0) -> dict:
    """Arguments of `kernels.attention` for sequences of `lengths`; skip: how much of each is padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    case = {
        name: torch.randn(tokens, count, width, generator=generator).to(dtype)
        for name, count in (("query", heads), ("key", key_heads), ("value", key_heads))
    }
    case["query"] *= 2  # scores of about two, so that the weights are far from equal
    case["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    case["max_seqlen"] = max(lengths, default=0)
    if skip is not None:
        case["skip"] = torch.tensor(skip, dtype=torch.int32)
    return case


def plain(query, key, value, cu_seqlens, max_seqlen, skip=None, scale=None, window=None, softcap=None):
    """Whole scores of each sequence by itself, the softmax in float32 at least, products at the inputs' precision."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // key.shape[1]
    outputs, lses = [], []
    bounds = cu_seqlens.tolist()
    for i, (start, end) in enumerate(pairwise(bounds)):
        first = min(start + (int(skip[i]) if skip is not None else 0), end)
        q, k, v = (t[first:end].transpose(0, 1) for t in (query, key, value))
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
        scores = (q @ k.mT) * (query.shape[2] ** -0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(end - first)[:, None] - torch.arange(end - first)
        hidden = (distance < 0) | (distance >= (window or end - first))
        scores = scores.to(dtype).masked_fill(hidden, -torch.inf)
        output = torch.softmax(scores, dim=-1).to(query.dtype) @ v
        pad = query.new_zeros(first - start, *query.shape[1:])
        outputs += [pad, output.transpose(0, 1)]
        lses += [pad[..., 0].to(dtype) - torch.inf, scores.logsumexp(dim=-1).T]
    if not outputs:
        return torch.zeros_like(query), query.new_zeros(query.shape[:2], dtype=dtype)
    return torch.cat(outputs), torch.cat(lses)


def moved(case, device, dtype=None) -> dict:
    """`case` on `device`, its float tensors in `dtype`."""
    return {
        name: item.to(device, dtype if item.is_floating_point() else None) if torch.is_tensor(item) else item
        for name, item in case.items()
    }


def objective_weights(output):
    """What `with_gradients` weighs the outputs with: bfloat16 numbers, so that they are the same in every dtype."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator).bfloat16().to(output)


def with_gradients(function, case, device="cpu", dtype=None, **options):
    """output, lse and the gradients of a weighted sum of the outputs in query, key and value."""
    case = moved(case, device, dtype)
    leaves = [case[name].detach().requires_grad_() for name in LEAVES]
    output, lse = function(**case | dict(zip(LEAVES, leaves, strict=True)), **options)
    return output, lse, *torch.autograd.grad((objective_weights(output) * output).sum(), leaves)


def assert_attention_right(case, device, **options) -> None:
    """The outputs of `kernels.attention` and its gradients are at most twice as far from the truth as `plain`'s."""
    actual = with_gradients(kernels.attention, case, device, **options)
    same = with_gradients(plain, case, **options)
    exact = with_gradients(plain, case, dtype=torch.float64, **options)
    noise = dict.fromkeys(("query", "key"), cancellation_noise(case, exact, options.get("scale")))
    noise["value"] = lse_noise(case, exact)
    for name, *tensors in zip(("output", "lse", *LEAVES), actual, same, exact, strict=True):
        if name in noise:
            tensors[0] = _forgiving(tensors[0], tensors[2], noise[name]).to(tensors[0].dtype)
        assert_as_good_as(*tensors, name=name)


def cancellation_noise(case, exact, scale) -> float:
    """The rounding of a term of the gradients of query and key, `scale (g_i . v_j) k_j`: the terms may cancel, as those
    of a query that sees one position do, and then that is what is left."""
    query, key, value = (case[name].double() for name in LEAVES)
    if not query.numel():
        return 0.0
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    dots = torch.einsum("ihd,jhd->hij", objective_weights(exact[0]).abs(), value.abs())
    scale = query.shape[2] ** -0.5 if scale is None else abs(scale)
    return _eps(case) * scale * max(x.abs().max().item() for x in (query, key)) * dots.max().item()


def lse_noise(case, exact) -> float:
    """What the rounding of lse, which the contract keeps in float32, makes of the gradient of value: all weights of a
    row that the backward forms from it carry the relative error of half a unit of lse."""
    lse, grad_value = exact[1], exact[4]
    lse = lse[lse.isfinite()]
    if not lse.numel():
        return 0.0
    return _eps(case) / 2 * lse.abs().max().item() * grad_value.abs().max().item()


def _eps(case) -> float:
    return torch.finfo(torch.promote_types(case["query"].dtype, torch.float32)).eps


def _forgiving(actual, exact, noise):
    """`actual`, moved towards the exact values by `noise` at most."""
    actual, exact = actual.double(), exact.to(actual.device)
    error = actual - exact
    return torch.where(error.abs() <= noise, exact, actual - noise * error.sign())
