"""What a card allows, and how many blocks of a kernel it keeps in flight.

Source: NVIDIA, "CUDA C++ Programming Guide" 13.0, tables "Technical Specifications per Compute Capability" and the
occupancy calculator's allocation rules: registers are handed to a warp in units of 256, shared memory in units of 128
bytes plus 1 KB that the system keeps of every block.
"""

from __future__ import annotations

from typing import NamedTuple

REGISTERS = 65_536  # of a multiprocessor, on every card below
WARP = 32
KB = 1024


class Card(NamedTuple):
    """Threads, blocks and bytes of shared memory of a multiprocessor, and the bytes that one block may take."""

    threads: int
    blocks: int
    shared: int
    shared_per_block: int


CARDS = {
    80: Card(2048, 32, 164 * KB, 163 * KB),  # A100
    86: Card(1536, 16, 100 * KB, 99 * KB),  # RTX 30, A10
    89: Card(1536, 24, 100 * KB, 99 * KB),  # RTX 40, L4, L40
    90: Card(2048, 32, 228 * KB, 227 * KB),  # H100, H200
    100: Card(2048, 32, 228 * KB, 227 * KB),  # B200
    120: Card(1536, 24, 100 * KB, 99 * KB),  # RTX 50
}


def blocks_per_sm(arch: int, registers: int, shared: int, threads: int) -> int:
    """How many blocks one multiprocessor holds at once; zero if not even one fits.

    Args:
        registers: of one thread.
        shared: bytes of one block.
        threads: of one block.
    """
    card = CARDS[arch]
    if shared > card.shared_per_block:
        return 0
    warps = -(-threads // WARP)
    of_a_warp = -(-max(registers, 1) * WARP // 256) * 256
    by_registers = REGISTERS // of_a_warp // warps
    by_shared = card.shared // (-(-shared // 128) * 128 + KB)
    return min(card.blocks, card.threads // (warps * WARP), by_registers, by_shared)
