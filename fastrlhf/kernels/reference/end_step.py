"""What a decoding step leaves in the state of its rows."""

from __future__ import annotations


def end_step(
    logprobs, entropy, tokens, steps, lengths, seen, new_tokens, new_logprobs, new_entropy, last_position
):
    """See `fastrlhf.kernels.end_step`."""
    for kept, new in ((tokens, new_tokens), (logprobs, new_logprobs), (entropy, new_entropy)):
        kept.copy_(new)
    steps += 1
    lengths += 1
    lengths.clamp_(max=last_position)
    if seen is not None and seen.shape[1]:
        # a token that there is none of leaves the mark of another as it is
        known = (new_tokens >= 0) & (new_tokens < seen.shape[1])
        column = new_tokens.clamp(0, seen.shape[1] - 1)[:, None]
        seen.scatter_(1, column, seen.gather(1, column) | known[:, None])
