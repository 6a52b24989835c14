"""The project's definition of right: as good as plain PyTorch at the same precision, against float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def assert_as_good_as(
    actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, *, ulps: float = 4, name: str = "result"
) -> None:
    """Assert that the largest error of `actual` is at most twice that of `plain`, plus a few ulps.

    Errors are distances to `exact`. The unit in the last place is that of the largest magnitude in `exact`,
    in the precision of `actual`. Where `exact`, cast to that precision, is NaN or infinite, `actual` must
    be the same; where it is finite, `actual` must be too. A float64 result has nothing more exact to be held
    against: `plain` and `exact` are then one computation, and the units count sixteenfold.

    Args:
        actual: what is tested, any float dtype.
        plain: the same quantity by plain PyTorch, in the same dtype and shape.
        exact: the same quantity computed in float64.
        ulps: how many units in the last place come on top.
        name: what the message calls `actual`.
    """
    assert exact.dtype == torch.float64, f"{name}: exact has dtype {exact.dtype}, expected torch.float64"
    assert actual.dtype == plain.dtype, f"{name}: dtype {actual.dtype}, plain PyTorch gives {plain.dtype}"
    shapes = [tuple(tensor.shape) for tensor in (actual, plain, exact)]
    assert len(set(shapes)) == 1, f"{name}: shapes of actual, plain and exact differ: {shapes}"
    if actual.numel() == 0:
        return
    actual, plain, exact = (tensor.detach().cpu() for tensor in (actual, plain, exact))

    rounded = exact.to(actual.dtype)
    finite = rounded.isfinite()
    same = torch.where(rounded.isnan(), actual.isnan(), actual == rounded)
    wrong = torch.where(finite, ~actual.isfinite(), ~same)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} values are not finite where exact is, or not the "
            f"NaN or infinity that exact is; the first at {where}: {_values(actual, plain, exact, where)}"
        )

    error = _error(actual, exact, finite)
    plain_error = _error(plain, exact, finite & plain.isfinite())
    ulps = 16 * ulps if actual.dtype == torch.float64 else ulps
    allowed = 2 * plain_error.max().item() + ulps * _ulp(exact[finite], actual.dtype)
    if error.max().item() > allowed:
        where = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        raise AssertionError(
            f"{name}: error {error.max().item():.3e} at {where}, allowed {allowed:.3e} (twice plain "
            f"PyTorch's {plain_error.max().item():.3e} plus {ulps} ulps of {actual.dtype}): "
            f"{_values(actual, plain, exact, where)}; "
            f"{int((error > allowed).sum())} of {error.numel()} values exceed it"
        )


def assert_as_good_on_average(
    actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, *, ulps: float = 4, name: str = "result"
) -> None:
    """As `assert_as_good_as` for many numbers of drawn cases: the root of the mean squared error is held to twice plain
    PyTorch's, and the largest one, which is luck on both sides where a logit's last digit counts many times in e^z, to
    four times its largest.
    """
    if actual.numel() == 0:
        return
    for factor, measure in ((2, lambda errors: errors.square().mean().sqrt()), (4, torch.max)):
        error, plain_error = (
            measure(_error(tensor, exact, exact.isfinite())).item() for tensor in (actual, plain)
        )
        allowed = factor * plain_error + ulps * _ulp(exact[exact.isfinite()], actual.dtype)
        assert error <= allowed, (
            f"{name}: error {error:.3e}, allowed {allowed:.3e} ({factor} times plain PyTorch's {plain_error:.3e} "
            f"plus {ulps} ulps of {actual.dtype})"
        )


def joined(runs: Iterable[Iterable[torch.Tensor]]) -> list[torch.Tensor]:
    """The outputs of several runs, each with its like in the other runs, flat.

    Of a few numbers, or of those that one rounding of one row scales, plain PyTorch's largest error may happen to be
    next to nothing: of several runs it hardly does.
    """
    return [torch.cat([tensor.flatten() for tensor in like]) for like in zip(*runs, strict=True)]


def _error(tensor: torch.Tensor, exact: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return torch.where(counted, (tensor.double() - exact).abs(), 0.0)


def _ulp(exact: torch.Tensor, dtype: torch.dtype) -> float:
    """The unit in the last place of the largest magnitude (of the smallest normal number if all are zero)."""
    info = torch.finfo(dtype)
    largest = max(exact.abs().max().item() if exact.numel() else 0.0, info.tiny)
    _, exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64))
    return info.eps * 2.0 ** (int(exponent) - 1)


def _values(actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, where: tuple[int, ...]) -> str:
    return f"actual {actual[where].item()!r}, plain {plain[where].item()!r}, exact {exact[where].item()!r}"
