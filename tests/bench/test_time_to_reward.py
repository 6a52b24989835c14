from __future__ import annotations

from dataclasses import asdict

from fastrlhf.bench import time_to_reward
from fastrlhf.bench.results import provenance

GOAL = {"level": 0.45, "window": 5, "cap_s": 100.0}
WHERE = provenance(2, "trl==1.12.0")


def result(reached, elapsed=None, rate=1e-3):
    elapsed = elapsed or reached
    return {
        "reached_s": reached,
        "elapsed_s": elapsed,
        "steps": 10,
        "scores": [],
        "peak_rss_mb": 900.0,
        "learning_rate": rate,
    }


def test_the_fastest_learning_rate_counts_and_bounds_the_others():
    caps = []

    def run(rate, cap):
        caps.append(cap)
        seconds = {1: 50.0, 2: 30.0, 3: 70.0}[rate]
        return result(seconds if seconds <= cap else None, min(seconds, cap))

    best = time_to_reward.fastest(run, (1, 2, 3), 100.0)
    assert (best["learning_rate"], best["reached_s"]) == (2, 30.0)
    assert caps == [100.0, 50.0, 30.0]


def test_where_none_reaches_it_nothing_is_reached():
    best = time_to_reward.fastest(lambda rate, cap: result(None, cap), (1, 2, 3), 100.0)
    assert best["reached_s"] is None and best["learning_rate"] == 3


def test_a_step_that_ended_after_the_cap_did_not_reach_it():
    best = time_to_reward.fastest(lambda rate, cap: result(120.0), (1,), 100.0)
    assert best["reached_s"] is None


def rows(*rounds):
    found = time_to_reward.summarise("smollm2", rounds, **GOAL, threads=2, where=WHERE)
    return {row.contender: row for row in found}


def test_the_ratio_is_formed_within_a_round_and_a_cap_bounds_it():
    found = rows(
        {"ours": result(5.0), "trl": result(50.0, rate=1e-5)},
        {"ours": result(10.0), "trl": result(None, 100.0, rate=3e-5)},
        {"ours": result(5.0), "trl": result(20.0, rate=1e-5)},
    )
    trl = found["trl"]
    assert (trl.ours_faster, trl.ours_faster_low, trl.ours_faster_high) == (10.0, 4.0, 10.0)
    assert (trl.train_s_median, trl.train_s_high, trl.reached, trl.rounds) == (50.0, 100.0, 2, 3)
    assert trl.learning_rates == "1e-05 3e-05 1e-05"
    assert trl.step_s == 5.0


def test_ours_is_not_faster_where_it_did_not_reach_the_level(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    found = rows({"ours": result(None, 100.0), "trl": result(50.0)})
    assert found["trl"].ours_faster == 0.0
    time_to_reward.show(list(found.values()))
    shown = " ".join(capsys.readouterr().out.split())
    assert "ours did not reach it" in shown and "at least" not in shown


def test_the_table_says_at_least_where_a_round_was_capped(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    found = list(rows({"ours": result(5.0), "trl": result(None, 100.0), "trl+peft": result(15.0)}).values())
    time_to_reward.show(found)
    shown = capsys.readouterr().out
    assert "at least 20.00 (20.00 to 20.00)" in shown and "≥ 10: met" in shown and "0 of 1" in shown
    assert " 3.00 (3.00 to 3.00)" in shown and "≥ 5: missed" in shown
    lines = [{name: str(value) for name, value in asdict(row).items()} for row in found]
    time_to_reward.draw(lines, tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 5000


def test_each_contender_is_given_three_learning_rates_and_the_same_seed(tmp_path, monkeypatch):
    asked = []

    def run_side(module, job, *, threads, peers=()):
        asked.append((module.rpartition("_")[2], job["peft"], job["seed"], job["learning_rate"]))
        return result(None, 1.0)

    monkeypatch.setattr(time_to_reward, "run_side", run_side)
    time_to_reward.time_rounds("smollm2", **GOAL, rounds=1, threads=2, trl=tmp_path)
    rates = time_to_reward.LEARNING_RATES
    assert asked == [
        *(("ours", False, 1, rate) for rate in rates["ours"]),
        *(("trl", False, 1, rate) for rate in rates["trl"]),
        *(("trl", True, 1, rate) for rate in rates["trl+peft"]),
    ]
