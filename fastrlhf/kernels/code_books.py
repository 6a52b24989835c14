"""The published code books of 4-bit weights and of their 8-bit scales, as tables that every backend reads."""

from __future__ import annotations

import functools

import torch

# Dettmers et al., "QLoRA: efficient finetuning of quantized LLMs" (2023), appendix E: quantiles of the normal
# distribution, eight on the positive side and eight on the negative, zero among both.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
NF4_ZERO = NF4.index(0.0)


def dynamic_8bit() -> torch.Tensor:
    """The 256 values of the 8-bit float with a dynamic exponent, ascending, float32 on the CPU.

    Source: Dettmers et al., "8-bit optimizers via block-wise quantization" (2022), section 1.3: a sign, an exponent
    of as many zero bits as there are (a power of ten each), and the rest a linear fraction between 0.1 and 1. QLoRA's
    released code keeps the scales of its scales in it, and so do the checkpoints made with that.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        magnitudes = (10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / 2)
        values += magnitudes.tolist() + (-magnitudes).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


@functools.cache
def table(name: str, device: torch.device) -> torch.Tensor:
    """A code book on `device`, float32: "nf4" `[16]`, "nf4 thresholds" `[15]`, "dynamic" `[256]`, "dynamic thresholds"
    `[255]`. Thresholds lie half-way between neighbours; a value on one has the lower code.
    """
    book = dynamic_8bit() if name.startswith("dynamic") else torch.tensor(NF4, dtype=torch.float32)
    if name.endswith("thresholds"):
        book = (book[:-1] + book[1:]) / 2
    return book.to(device)
