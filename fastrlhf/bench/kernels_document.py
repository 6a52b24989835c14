"""The kernels' rows as tables of a document, between two markers, so that nobody types a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastrlhf.bench.kernels import Row
from fastrlhf.bench.kernels_view import NAMES, by_operation, is_kernel, judged
from fastrlhf.bench.targets import Target, targets_of
from fastrlhf.kernels.dispatch import BACKENDS

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"


def fill(document: Path, rows: Sequence[Row], goals: Sequence[Target]) -> None:
    """Replace what stands between the markers of `document`.

    Raises:
        ValueError: it does not hold both markers, in that order.
    """
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} does not hold {BEGIN} and after it {END}")
    document.write_text(f"{before}{BEGIN}\n{tables(rows, goals)}\n{END}{after}")


def tables(rows: Sequence[Row], goals: Sequence[Target]) -> str:
    """How it was measured, the targets, and every row of our kernels, folded."""
    return "\n\n".join(
        [
            _measured(rows),
            _lines(("operation", "cases", "target", "reached", "met"), _of_targets(rows, goals)),
            "<details><summary>Every case</summary>",
            _lines(
                ("operation", "case", "best other", "ours", "times faster", "GB/s", "temporary MB", "target"),
                _of_rows(rows),
            ),
            "</details>",
        ]
    )


def _measured(rows: Sequence[Row]) -> str:
    gbps = [row.read_gbps for row in rows if row.read_gbps is not None]
    told = [
        f"torch {', '.join(sorted({row.torch for row in rows}))}",
        f"{', '.join(sorted({f'{row.threads} threads' for row in rows}))}",
        *([f"a plain sum reads the memory at {min(gbps):.1f} to {max(gbps):.1f} GB/s"] if gbps else []),
    ]
    return f"{'; '.join(told)}."


def _of_targets(rows: Sequence[Row], goals: Sequence[Target]) -> list[tuple[str, ...]]:
    """A line for each target: the range of what its cases reached, and how many of them met it."""
    lines = []
    for goal in goals:
        reached, verdicts = [], []
        for row in filter(is_kernel, rows):
            if goal in targets_of(goals, row.operation, row.case):
                judgements = (found[1:] for found in judged(row) if found[0] == str(goal))
                value, verdict = next(judgements, ("", "not measured"))
                reached.append(float(value or "nan"))
                verdicts.append(verdict)
        if not verdicts:
            continue
        met = sum(verdict in ("met", "level") for verdict in verdicts)
        missed = dict.fromkeys(verdict for verdict in verdicts if ":" in verdict)
        range_ = f"{min(reached):.3g}" + (f" to {max(reached):.3g}" if len(reached) > 1 else "")
        counted = "; ".join([f"{met} of {len(verdicts)}", *missed])
        lines.append((f"`{goal.operation}`", goal.case, str(goal), range_, counted))
    return lines


def _of_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    lines = []
    for operation, group in by_operation(rows):
        for row in filter(is_kernel, group):
            others = [other for other in group if other.case == row.case and other.contender not in BACKENDS]
            best = min(others, key=lambda other: other.p50_ms)
            cells = (
                f"`{operation}`",
                row.case,
                f"{best.p50_ms:.3g} ms ({NAMES.get(best.contender, best.contender)})",
                f"{row.p50_ms:.3g} ms",
                f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})",
                "" if row.gbps is None else f"{row.gbps:.3g}",
                "" if row.temporary_mb is None else f"{row.temporary_mb:.3g}",
                "; ".join(f"{target}: {reached}, {verdict}" for target, reached, verdict in judged(row)),
            )
            lines.append(cells)
    return lines


def _lines(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells)
