"""Counts what one PPO step of TRL's trainer and of ours asks of an accelerator, both by the simulated one's books.

Nothing here is timed: the counts of a step do not depend on the machine, and one run has them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastrlhf.bench.peer_targets import verdict
from fastrlhf.bench.peers import TRL
from fastrlhf.bench.ppo_vs_trl import PEERS
from fastrlhf.bench.results import Provenance, provenance
from fastrlhf.bench.sides import run_side
from fastrlhf.bench.table import Figure, show_side_by_side

SHOWN_KERNELS = 12

# Title, figure of a row, and what a row calls our share of it.
FIGURES = (
    ("kernels", "launches", "launches"),
    ("read and written, MB", "moved_mb", "bytes"),
    ("  read, MB", "read_mb", None),
    ("  written, MB", "written_mb", None),
    ("peak, MB", "peak_mb", "peak"),
    ("arithmetic, GFLOP", "gflop", None),
    ("waits of the host", "waits", None),
)


@dataclass(frozen=True)
class LaunchRow:
    """One contender of one mode and model.

    Attributes:
        launches: kernels of a step (views are none, an operation of ours or PyTorch's attention is one).
        read_mb, written_mb: what they had to read and write of the device's memory, 10^6 bytes.
        gflop: arithmetic in matrix products and in our operations, 10^9 operations.
        peak_mb: the most of the device's memory that the step held, 10^6 bytes.
        waits: how often the host waited for the device.
        ours_launches, ours_bytes, ours_peak: ours over this contender's.
    """

    mode: str
    model: str
    contender: str
    launches: int
    read_mb: float
    written_mb: float
    gflop: float
    peak_mb: float
    waits: int
    ours_launches: float
    ours_bytes: float
    ours_peak: float
    cpu: str
    cores: int
    threads: int
    fastrlhf: str
    torch: str
    transformers: str
    peft: str
    peer: str

    @property
    def moved_mb(self) -> float:
        return self.read_mb + self.written_mb


def count(mode: str, model: str, *, threads: int, trl: Path | None) -> dict[str, dict[str, Any]]:
    """What each contender's second step did (the first makes the optimizer's state), by the contender's name.

    Args:
        mode: "full" or "lora".
        model: of `models.SHAPES`.
        trl: the folder of TRL; None leaves it out.

    Raises:
        SideError: a side failed.
    """
    job = {"mode": mode, "model": model, "steps": 1, "seed": 1}
    contenders = {"ours": ("ours", [])} | ({PEERS[mode]: ("trl", [trl])} if trl else {})
    found = {}
    for name, (side, peers) in contenders.items():
        print(f"{mode} {model}: {name}", file=sys.stderr, flush=True)
        found[name] = run_side(
            "fastrlhf.bench.side_launches", {**job, "side": side}, threads=threads, peers=peers
        )
    return found


def summarise(
    mode: str,
    model: str,
    found: Mapping[str, dict[str, Any]],
    where: Provenance | None = None,
    threads: int = 2,
) -> list[LaunchRow]:
    """One row a contender, ours first."""
    where = where or provenance(threads, *([TRL.requirement] if len(found) > 1 else []))
    ours = found["ours"]
    rows = []
    for name, step in found.items():
        rows.append(
            LaunchRow(
                mode,
                model,
                name,
                _launches(step),
                round(step["read"] / 1e6, 1),
                round(step["written"] / 1e6, 1),
                round(step["flops"] / 1e9, 1),
                round(step["peak"] / 1e6, 1),
                sum(step["waits"].values()),
                round(_launches(ours) / _launches(step), 3),
                round(_moved(ours) / _moved(step), 3),
                round(ours["peak"] / step["peak"], 3),
                **asdict(where),
            )
        )
    return rows


def _launches(step: Mapping[str, Any]) -> int:
    return sum(step["launches"].values())


def _moved(step: Mapping[str, Any]) -> int:
    return step["read"] + step["written"]


def show(rows: Sequence[LaunchRow], found: Mapping[str, dict[str, Any]]) -> None:
    """Print the table, and the kernels that each contender launches most."""
    from rich.console import Console

    case = f"{rows[0].mode} {rows[0].model}"
    figures = []
    for title, name, shares in FIGURES:
        values = [f"{getattr(row, name):,.0f}" for row in rows]
        compared = []
        for peer in rows[1:] if shares else ():
            share = getattr(peer, f"ours_{shares}")
            compared.append((f"{share:.3f}", verdict(case, peer.contender, shares, share)))
        figures.append(Figure(title, values, compared))
    title = f"One PPO step on the simulated accelerator: {case}"
    show_side_by_side(title, [row.contender for row in rows], "share of {}'s", figures)
    console = Console()
    for name, step in found.items():
        most = list(step["launches"].items())[:SHOWN_KERNELS]
        console.print(f"{name} launches most: " + ", ".join(f"{kernel} {times:,}" for kernel, times in most))
