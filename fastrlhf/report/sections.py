"""The sections of the report page, each from the part of the summary that it shows; an empty one is ''.

Everything that comes from the run goes through `_text`, which makes it printable and escapes it.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fastrlhf.report.plots import PLOTS
from fastrlhf.report.text import printable
from fastrlhf.report.units import duration, finite, number, share

Summary = Mapping[str, Any]


def lead(rows: Sequence[Mapping[str, Any]], summary: Summary) -> str:
    """The line under the title: how long the run was, on what it ran, with which seed."""
    # A row at step 0 is a measurement before training.
    steps = len({row["step"] for row in rows if (finite(row.get("step")) or 0) > 0})
    parts = [f"{steps:,} step{'s' * (steps != 1)}"] if steps else ["No metrics were recorded"]
    if summary.get("device"):
        parts.append(_text(summary["device"]))
    if summary.get("seed") is not None:
        parts.append(f"seed {_text(summary['seed'])}")
    return " · ".join(parts)


def headline(summary: Summary) -> str:
    """The numbers that say whether the run worked and what it cost."""
    last_quarter = finite(summary.get("reward_last_quarter"))
    limit = finite(summary.get("kl_limit"))
    cards = [
        _before_after(
            "Reward",
            summary,
            "reward",
            number,
            note=last_quarter is not None and f"last quarter {number(last_quarter)}",
        ),
        _before_after("Judged positive", summary, "judge", share),
        _card(
            "KL at the end",
            summary,
            "kl_final",
            number,
            "nats",
            note=limit is not None and f"limit {limit:g} nats",
        ),
        _card("Wall time", summary, "wall_s", duration),
        _card("Peak memory", summary, "peak_rss_mb", number, "MB"),
        _card("Throughput", summary, "tokens_per_second", number, "tokens/s"),
    ]
    shown = "\n".join(card for card in cards if card)
    return f'<section class="numbers">\n{shown}\n</section>' if shown else ""


def plots(pictures: Mapping[str, tuple[str, str]]) -> str:
    """The plots with their captions.

    Args:
        pictures: name of the plot to the data URIs of its light and its dark picture.
    """
    figures = [
        figure(*pictures[plot.name], f"{plot.panels[0].title} over the steps of the run", plot.caption)
        for plot in PLOTS
        if plot.name in pictures
    ]
    if not figures:
        return ""
    return (
        "<h2>Training</h2>\n"
        '<p class="lead">Faint lines are single steps, bold ones running means.</p>\n'
        f'<div class="plots">\n{chr(10).join(figures)}\n</div>'
    )


def figure(light: str, dark: str, alt: str, caption: str) -> str:
    """One plot, by the data URIs of its light and its dark picture, with its caption if it has one."""
    caption = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        '<figure class="card">\n'
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(printable(alt))}"></picture>{caption}\n</figure>'
    )


def samples(summary: Summary) -> str:
    """Completions of the same prompts before and after training, side by side."""
    lines = [
        "<tr>"
        f'<td class="prompt" data-label="Prompt"><div class="text">{_text(sample.get("prompt"))}</div></td>'
        f'<td data-label="Before training">{_completion(sample, "before")}</td>'
        f'<td data-label="After training">{_completion(sample, "after")}</td>'
        "</tr>"
        for sample in summary.get("samples") or []
    ]
    if not lines:
        return ""
    return (
        "<h2>Samples</h2>\n"
        '<p class="lead">The same prompts, completed by the model before and after training.</p>\n'
        '<div class="card"><table>\n'
        "<thead><tr><th>Prompt</th><th>Before training</th><th>After training</th></tr></thead>\n"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table></div>"
    )


def setup(summary: Summary) -> str:
    """The command and the configuration, with which the run can be repeated."""
    command = f'<pre class="card">{_text(summary["command"])}</pre>' if summary.get("command") else ""
    fields = "\n".join(
        f"<div><dt>{_text(name)}</dt><dd>{_setting(value)}</dd></div>"
        for name, value in (summary.get("config") or {}).items()
    )
    config = f'<dl class="card">\n{fields}\n</dl>' if fields else ""
    return f"<h2>Configuration</h2>\n{command}\n{config}" if command or config else ""


def footer(summary: Summary) -> str:
    """The versions of everything that took part."""
    versions = (summary.get("versions") or {}).items()
    return " · ".join(f"{_text(name)} {_text(version)}" for name, version in versions)


def _text(value: Any) -> str:
    """Anything as text of the page; None is no text."""
    return "" if value is None else escape(printable(value))


def _setting(value: Any) -> str:
    return _text(json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value))


def _card(name: str, summary: Summary, key: str, show, unit: str = "", note: str | bool = False) -> str:
    value = finite(summary.get(key))
    if value is None:
        return ""
    unit = f' <span class="unit">{unit}</span>' if unit else ""
    return _frame(name, f"{show(value)}{unit}", note)


def _before_after(name: str, summary: Summary, key: str, show, note: str | bool = False) -> str:
    before, after = (finite((summary.get(when) or {}).get(key)) for when in ("before", "after"))
    if after is None and before is None:
        return ""
    if after is None:
        return _frame(name, show(before), "before training")
    if before is None:
        return _frame(name, show(after), note)
    return _frame(name, f'<span class="from">{show(before)} →</span> {show(after)}', note)


def _frame(name: str, value: str, note: str | bool) -> str:
    note = f'<div class="note">{note}</div>' if note else ""
    return f'<div class="card"><div class="name">{name}</div><div class="value">{value}</div>{note}</div>'


def _completion(sample: Mapping[str, Any], when: str) -> str:
    """One completion under chips with its reward and what the judge thought of it."""
    chips = []
    reward, before = finite(sample.get(f"reward_{when}")), finite(sample.get("reward_before"))
    if reward is not None:
        change = "" if when == "before" or before is None or reward == before else reward > before
        kind = {"": "", True: " better", False: " worse"}[change]
        chips.append(f'<span class="chip{kind}">reward {reward:.2f}</span>')
    judge = finite(sample.get(f"judge_{when}"))
    if judge is not None:
        chips.append(f'<span class="chip">judge {judge:.2f}</span>')
    scores = f'<div class="scores">{"".join(chips)}</div>' if chips else ""
    # The space that most completions start with would only look like a crooked margin.
    return f'{scores}<div class="text">{_text(sample.get(when)).strip()}</div>'
