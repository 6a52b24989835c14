"""What a decoding step leaves in the state of its rows: contract and public function."""

from __future__ import annotations

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import check_at_least, check_dims, check_dtype, check_same_device, check_shape

_FLOATS = (torch.float32, torch.float64)


@torch.no_grad()
def end_step(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    tokens: torch.Tensor,
    steps: torch.Tensor,
    lengths: torch.Tensor,
    seen: torch.Tensor | None,
    drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    last_position: int,
) -> None:
    """Keep what the rows drew, in place: their tokens, log-probabilities and entropies; a step more, a position more.

    Args:
        logprobs, entropy: `[B]`, float32 or float64, replaced by those drawn, as are tokens `[B]`, int64.
        steps: `[B]`, int64, becomes one more.
        lengths: `[B]`, int32, becomes one more, at most `last_position` (rows that only fill a CUDA graph's batch up
            would grow without end).
        seen: `[B, V]`, bool, in which the tokens drawn are marked (those outside of V are not), or None.
        drawn: tokens, log-probabilities and entropies as `sample` returns them.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Memory: nothing.
    """
    check_dims("logprobs", logprobs, 1, "[B]")
    shape = tuple(logprobs.shape)
    new_tokens, new_logprobs, new_entropy = drawn
    tensors = {
        "logprobs": (logprobs, _FLOATS),
        "entropy": (entropy, (logprobs.dtype,)),
        "tokens": (tokens, (torch.int64,)),
        "steps": (steps, (torch.int64,)),
        "lengths": (lengths, (torch.int32,)),
        "drawn[0]": (new_tokens, (torch.int64,)),
        "drawn[1]": (new_logprobs, _FLOATS),
        "drawn[2]": (new_entropy, (new_logprobs.dtype,)),
    }
    for name, (tensor, dtypes) in tensors.items():
        check_shape(name, tensor, shape, "[B]")
        check_dtype(name, tensor, dtypes)
    if seen is not None:
        check_dims("seen", seen, 2, "[B, V]")
        check_shape("seen", seen, (*shape, seen.shape[1]), "[B, V]")
        check_dtype("seen", seen, (torch.bool,))
    check_at_least("last_position", last_position, 0)
    check_same_device(**{name: tensor for name, (tensor, _) in tensors.items()}, seen=seen)
    _end_step(logprobs, entropy, tokens, steps, lengths, seen, *drawn, last_position)


@dispatch.costs("end_step")
def _cost(logprobs, entropy, tokens, steps, lengths, seen, *rest) -> Cost:
    *drawn, _ = rest
    marked = 0 if seen is None else len(seen)
    written = nbytes(logprobs, entropy, tokens, steps, lengths) + marked
    return Cost(nbytes(steps, lengths, *drawn), written, 2 * len(tokens))


@torch.library.custom_op(
    "fastrlhf::end_step", mutates_args=("logprobs", "entropy", "tokens", "steps", "lengths", "seen")
)
def _end_step(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    tokens: torch.Tensor,
    steps: torch.Tensor,
    lengths: torch.Tensor,
    seen: torch.Tensor | None,
    new_tokens: torch.Tensor,
    new_logprobs: torch.Tensor,
    new_entropy: torch.Tensor,
    last_position: int,
) -> None:
    state = logprobs, entropy, tokens, steps, lengths, seen
    dispatch.call("end_step", *state, new_tokens, new_logprobs, new_entropy, last_position)


@_end_step.register_fake
def _(*args):
    return None
