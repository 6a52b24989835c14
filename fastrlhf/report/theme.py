"""The colours of the plots, once on white paper and once for a dark page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """Colours as ``#rrggbb``.

    Args:
        paper: behind everything.
        ink: titles.
        muted: axis labels, ticks and legends.
        grid: grid lines and the axes' own lines.
        lines: one colour per line or bar segment, told apart by lightness too, for those who see no hue.
        limit: a value that must not be passed.
    """

    paper: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]
    limit: str


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2430",
    muted="#5b6675",
    grid="#e6e9ee",
    lines=("#2f5fd0", "#e08a1e", "#1c9a86", "#8a5bc7"),
    limit="#c8384a",
)
DARK = Theme(
    paper="#171b22",
    ink="#e8ebf0",
    muted="#9aa5b4",
    grid="#2a313c",
    lines=("#7aa2ff", "#f2b155", "#4fc7b3", "#bb96f0"),
    limit="#ff7a88",
)
