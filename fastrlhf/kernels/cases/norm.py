"""Cases of `norm`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Both norms, with and without a residual, in Llama's and in Gemma's order; short rows and none."""
    hidden_states, residual = normal(3, 5, 67, seed=1).to(dtype), normal(3, 5, 67, seed=2).to(dtype)
    weight, bias = (1 + normal(67, seed=3)).to(dtype), normal(67, seed=4).to(dtype)
    return {
        "RMS": (hidden_states, weight, None, None, 1e-6, 0.0, True),
        "RMS, residual, offset": (hidden_states, weight, None, residual, 1e-5, 1.0, False),
        "layer, residual": (hidden_states, weight, bias, residual, 1e-5, 0.0, False),
        "layer, one element": (
            hidden_states[..., :1].contiguous(),
            weight[:1],
            bias[:1],
            None,
            1e-5,
            0.0,
            False,
        ),
        "no row": (hidden_states[:0], weight, None, residual[:0], 1e-6, 0.0, True),
    }
