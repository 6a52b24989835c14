from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from fastrlhf.bench import generation, side_generate
from fastrlhf.bench.results import provenance

WHERE = provenance(2, "ctranslate2==4.8.5")
OPTIONS = {"temperature": 0.8, "threads": 2, "where": WHERE}


def side(*seconds):
    return {"seconds": list(seconds), "tokens": 384, "peak_rss_mb": 1234.4}


def test_ratios_are_formed_within_a_round_and_tokens_come_from_the_median():
    rounds = [
        {"ours": side(1.0, 1.0, 2.0), "ctranslate2": side(3.0, 2.0, 1.5)},
        {"ours": side(2.0, 2.0, 2.0), "ctranslate2": side(3.0, 3.0, 3.0)},
    ]
    ours, other = generation.summarise("smollm2", "float32", 8, rounds, **OPTIONS)
    assert (other.ours_faster, other.ours_faster_low, other.ours_faster_high) == (1.75, 1.5, 2.0)
    assert (ours.generate_s_p50, ours.tokens_per_second, ours.ours_faster) == (2.0, 192.0, 1.0)
    assert (other.peak_rss_mb, other.prompt, other.response, other.repeats) == (1234, 16, 48, 3)


def test_the_table_has_ratios_and_targets(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = generation.summarise(
        "smollm2", "int8", 8, [{"ours": side(1.0), "ctranslate2": side(1.5)}], **OPTIONS
    )
    rows += generation.summarise(
        "smollm2", "float32", 8, [{"ours": side(1.0), "ctranslate2": side(2.0)}], **OPTIONS
    )
    generation.show(rows)
    shown = capsys.readouterr().out
    assert "1.50 (1.50 to 1.50)" in shown and "≥ 1.8: missed" in shown
    assert "2.00 (2.00 to 2.00)" in shown and "≥ 1.8: met" in shown
    lines = [{name: str(value) for name, value in asdict(row).items()} for row in rows]
    generation.draw(lines, tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("precision", "engine", "names"),
    [
        ("float32", Path("x"), ["ours", "transformers", "ctranslate2"]),
        ("float32", None, ["ours", "transformers"]),
        ("int8", Path("x"), ["ours", "ctranslate2"]),
        ("int8", None, ["ours"]),
    ],
)
def test_who_takes_part(precision, engine, names):
    assert generation.contenders_of(precision, engine) == names


def test_a_contender_that_gives_fewer_tokens_is_refused(monkeypatch):
    monkeypatch.setitem(side_generate.CONTENDERS, "ours", lambda job: (lambda prompts, length: 1, None))
    job = {"contender": "ours", "model": "tiny", "batch": 2, "repeats": 1}
    with pytest.raises(SystemExit, match="ours gave 1 tokens, expected 2 x 6"):
        side_generate.measure(job)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("contender", ["ours", "transformers"])
def test_a_contender_gives_all_the_tokens(contender, temperature):
    job = {"contender": contender, "model": "tiny", "batch": 2, "repeats": 2, "precision": "float32"}
    result = side_generate.measure({**job, "temperature": temperature})
    assert len(result["seconds"]) == 2 and result["tokens"] == 12
