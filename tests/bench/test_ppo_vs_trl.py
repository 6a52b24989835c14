from __future__ import annotations

from dataclasses import asdict

import pytest

from fastrlhf.bench import ppo_vs_trl
from fastrlhf.bench.results import provenance

WHERE = provenance(2, "trl==1.12.0")


def side(*seconds, peak=1000.0, length=3.0):
    phases = [{"rollout": 0.1, "reward": 0.2, "evaluate": 0.3, "update": 0.4} for _ in seconds]
    return {
        "steps_s": list(seconds),
        "phases_s": phases,
        "lengths": [length] * len(seconds),
        "peak_rss_mb": peak,
    }


ROUNDS = [
    {"ours": side(1.0, 1.0, 3.0, peak=500), "trl": side(2.0, 4.0, 4.0)},
    {"trl": side(3.0, 3.0, 3.0), "ours": side(2.0, 2.0, 2.0, peak=400)},
    {"ours": side(1.0, 1.0, 1.0, peak=250), "trl": side(2.0, 2.0, 2.0)},
]


def test_ratios_are_formed_within_a_round():
    ours, trl = ppo_vs_trl.summarise("full", "smollm2", ROUNDS, WHERE)
    assert (ours.contender, trl.contender) == ("ours", "trl")
    assert (trl.ours_faster, trl.ours_faster_low, trl.ours_faster_high) == (2.0, 1.5, 4.0)
    assert (trl.ours_memory, trl.ours_memory_low, trl.ours_memory_high) == (0.4, 0.25, 0.5)
    assert ours.ours_faster == ours.ours_memory == 1.0


def test_a_row_says_what_was_measured():
    ours, trl = ppo_vs_trl.summarise("full", "smollm2", ROUNDS, WHERE)
    assert (trl.step_s_p20, trl.step_s_p50, trl.step_s_p80) == (2.0, 3.0, 3.0)
    assert (ours.rollout_s, ours.update_s) == (0.1, 0.4)
    assert ours.tokens_per_second == 24.0, "8 sequences of 3 tokens in a second"
    assert (ours.peak_rss_mb, trl.rounds, trl.steps, trl.peer) == (500, 3, 3, "trl==1.12.0")


def test_the_side_that_goes_first_changes_from_round_to_round():
    order = []
    sides = {name: lambda name=name: order.append(name) for name in ("ours", "trl", "other")}
    for number in (1, 2, 3, 4):
        assert set(ppo_vs_trl.take_turns(sides, number, "a test")) == set(sides)
    assert [order[3 * index] for index in range(4)] == ["ours", "trl", "other", "ours"]


def test_the_table_has_ratio_and_verdict_and_the_plot_all_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    rows = ppo_vs_trl.summarise("full", "smollm2", ROUNDS, WHERE)
    ppo_vs_trl.show(rows)
    shown = capsys.readouterr().out
    assert "2.00 (1.50 to 4.00)" in shown and "≥ 1.7: met" in shown and "0.40 (0.25 to 0.50)" in shown
    lines = [{name: str(value) for name, value in asdict(row).items()} for row in rows]
    ppo_vs_trl.draw(lines, tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 5000


@pytest.mark.parametrize(("mode", "peer"), [("full", "trl"), ("eos", "trl"), ("lora", "trl+peft")])
def test_a_round_asks_both_sides_for_the_same_job(mode, peer, tmp_path, monkeypatch):
    asked = []

    def run_side(module, job, *, threads, peers=()):
        asked.append((module, job, threads, list(peers)))
        return side(1.0)

    monkeypatch.setattr(ppo_vs_trl, "run_side", run_side)
    found = ppo_vs_trl.time_rounds(mode, "17m", steps=4, rounds=2, threads=2, trl=tmp_path)
    assert [set(one_round) for one_round in found] == [{"ours", peer}] * 2
    jobs = [{"mode": mode, "model": "17m", "steps": 4, "seed": seed} for seed in (1, 2)]
    ours = [("fastrlhf.bench.side_ours", job, 2, []) for job in jobs]
    trl = [("fastrlhf.bench.side_trl", job, 2, [tmp_path]) for job in jobs]
    assert asked == [ours[0], trl[0], trl[1], ours[1]]
