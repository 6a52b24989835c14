"""What real cards do in a second, for the simulated device's clock: the figures of their makers' data sheets.

They are peaks. No kernel reaches them, so a step on a real card takes longer than the clock says; what the clock is for
is how the parts of a step compare, and whether copies hide behind the computing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# What no data sheet tells, alike on all cards, as NVIDIA's developers describe it
# (https://developer.nvidia.com/blog/understanding-the-visualization-of-overhead-and-latency-in-nsight-systems):
# a kernel starts some microseconds after it may, and PyTorch needs some to ask for it.
KERNEL_START = 2e-6
HOST_ISSUE = 5e-6
# Pageable memory goes through a pinned buffer of the driver, so that every byte is moved twice
# (https://developer.nvidia.com/blog/how-optimize-data-transfers-cuda-cc: 2 and 3 GB/s against 5.3 and 6 pinned).
PAGEABLE_SHARE = 0.5
# Eight channels of DDR4-3200 of 8 bytes (JEDEC JESD79-4), as the servers of these cards have (a socket of the EPYC 7002
# in NVIDIA's DGX A100), read and written by a kernel of the host.
HOST_BANDWIDTH = 204.8e9


@dataclass(frozen=True)
class Profile:
    """A card and its host; bytes, bytes a second, operations a second, seconds.

    Args:
        name: as in `PROFILES`.
        capacity: memory. The chips hold 7 % more than these decimal gigabytes; the driver and its context take that.
        bandwidth: of the memory.
        float32, tf32, bfloat16: operations in that type, in tensor cores where there are any for it (float16 is as
            bfloat16).
        to_device, to_host: what the link carries each way from and to pinned memory.
        source: the data sheet.
        pageable_share: what is left of the link for memory that is not pinned.
        kernel_start: between the moment a kernel may start and its first instruction.
        host_issue: the host's time to ask for a kernel or a copy.
        host_bandwidth: of the host's memory.
    """

    name: str
    capacity: float
    bandwidth: float
    float32: float
    tf32: float
    bfloat16: float
    to_device: float
    to_host: float
    source: str
    pageable_share: float = PAGEABLE_SHARE
    kernel_start: float = KERNEL_START
    host_issue: float = HOST_ISSUE
    host_bandwidth: float = HOST_BANDWIDTH

    def rate(self, dtype: torch.dtype, tf32: bool = False) -> float:
        """Operations a second on `dtype` in products of matrices; the rest is bound by memory.

        Args:
            tf32: whether products of float32 may be rounded to it.
        """
        if dtype.itemsize <= 2:
            return self.bfloat16
        return self.tf32 if tf32 and dtype == torch.float32 else self.float32


# PCI Express x16, each way, after its 128/130 coding (PCI-SIG, PCI Express Base Specification, revisions 4.0 and 5.0):
# 16 lanes of 16 GT/s, and of 32 GT/s. The data sheets round this to 64 and 128 GB/s both ways; packets' headers take
# some of it from a real copy.
PCIE_4, PCIE_5 = 31.5e9, 63.0e9

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "4090",
            *(24e9, 1008e9),
            *(82.6e12, 82.6e12, 165.2e12),
            *(PCIE_4, PCIE_4),
            source="NVIDIA Ada GPU architecture, version 2.1, appendix A (dense, with float32 sums; PCIe 4.0)",
        ),
        Profile(
            "a100-40",
            *(40e9, 1555e9),
            *(19.5e12, 156e12, 312e12),
            *(PCIE_4, PCIE_4),
            source="NVIDIA A100 Tensor Core GPU architecture, version 1.0 (40 GB SXM4; dense; PCIe 4.0)",
        ),
        Profile(
            "a100-80",
            *(80e9, 2039e9),
            *(19.5e12, 156e12, 312e12),
            *(PCIE_4, PCIE_4),
            source="NVIDIA A100 Tensor Core GPU data sheet 1758950-r4 (80 GB SXM; dense; PCIe 4.0)",
        ),
        Profile(
            "h100",
            *(80e9, 3350e9),
            *(67e12, 494.5e12, 989.5e12),
            *(PCIE_5, PCIE_5),
            source="NVIDIA H100 Tensor Core GPU data sheet (SXM; dense, half of the sparse rates; PCIe 5.0)",
        ),
    )
}


def profile(name: str) -> Profile:
    """The profile called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in PROFILES:
        raise ValueError(f"profile {name!r} is not one of {', '.join(PROFILES)}")
    return PROFILES[name]
