"""The search for the largest model, and what is shown of it."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch

from fastrlhf import cli
from fastrlhf.bench import capacity, capacity_view
from fastrlhf.bench.capacity_plain import plain_peak
from fastrlhf.memory.meter import CapacityError

FAMILY = capacity.QUICK.family


@pytest.mark.parametrize("largest", [16, 48, 240, 256])
def test_the_search_finds_what_fits(largest):
    asked = []

    def peak(width):
        asked.append(width)
        if width > largest:
            raise CapacityError if width % 32 else torch.OutOfMemoryError
        return width

    assert capacity._largest(peak, 16, 16) == largest
    assert len(asked) < 12


def test_plain_holds_four_models_gradients_and_moments():
    job = FAMILY.job(64)
    policy = capacity.count_parameters(job.config)
    critic = policy - 2 * 64 * 96 + 64 * 96 + 64
    held = 4 * 2 * (policy + critic) + 4 * 3 * (policy + critic)
    peak = plain_peak(job, float("inf"))
    assert held < peak < 1.3 * held
    with pytest.raises(torch.OutOfMemoryError):
        plain_peak(job, peak - 1)
    assert plain_peak(job, peak) == peak


@pytest.mark.slow
def test_ours_is_within_the_device_and_larger():
    rows = capacity.growth(FAMILY, "4090")
    assert [(row.case, row.contender) for row in rows] == [
        ("full", "plain"),
        *((case, "ours") for case in capacity.CASES),
    ]
    for row in rows:
        assert row.peak_mb * 1e6 <= FAMILY.capacity
    assert rows[0].value == 1 and all(row.value > 8 and row.host_mb > row.peak_mb for row in rows[1:])


def test_the_overlap_is_of_the_update_phase():
    (row,), intervals = capacity.overlap(capacity.QUICK, "a100-40")
    assert row.value > 1 and row.peak_mb <= row.device_mb
    assert {interval.lane for interval in intervals} == {"compute", "to device", "to host", "host"}


def test_the_table_has_80_columns_and_verdicts(capsys):
    where = dict.fromkeys(("cpu", "fastrlhf", "torch", "transformers", "peft", "peer"), "")
    row = capacity.CapacityRow(
        *("growth", "full", "ours", 68, 8704, 62_345.6, 24_000, 23_700, 2.5e6, 3456.7, 143.2),
        **where, cores=2, threads=1,
    )  # fmt: skip
    peak = replace(row, question="peak", value=401.0)
    overlap = replace(row, question="overlap", case="full a100-40", value=1.1)
    capacity_view.show([row, peak, overlap])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].endswith("143.2 x ≥ 16: met")
    assert lines[2].endswith("401 MB ≤ 400: missed") and lines[3].endswith("1.100 ≤ 1.35: met")


def test_the_command_writes_the_file_and_the_pictures(tmp_path, capsys):
    assert cli.main(["bench", "capacity", "--quick", "--only", "overlap", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "capacity_timeline.png").stat().st_size > 10_000
    assert not (tmp_path / "capacity.png").exists()
    with open(tmp_path / "capacity.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["question"], row["case"]) == ("overlap", "full a100-40")
    assert str(tmp_path / "capacity.csv") in capsys.readouterr().out


def test_the_picture_has_a_bar_a_way(tmp_path):
    rows = [
        {
            "question": "growth",
            "case": case,
            "contender": who,
            "parameters_m": size,
            "value": "9",
            "device_mb": "24000",
        }
        for case, who, size in (("full", "plain", "500"), ("full", "ours", "9000"), ("lora", "ours", "20000"))
    ]
    capacity_view.draw([*rows, {"question": "peak"}], tmp_path / "capacity.png")
    assert (tmp_path / "capacity.png").stat().st_size > 10_000


def test_the_real_run_is_by_the_memory_of_the_process_and_to_the_bit(tmp_path, monkeypatch):
    held, last = {"plain": 2400.0, "ours": 450.0}, {"plain": 1.5, "ours": 1.5}

    def run_side(module, job, *, threads):
        who = "ours" if job["options"] else "plain"
        assert module == "fastrlhf.bench.side_capacity" and job["options"].get("disk") in (
            None,
            str(tmp_path),
        )
        return {"losses": [1.0], "last": last[who], "state_mb": 1600.0, "peak_rss_mb": held[who]}

    monkeypatch.setattr(capacity, "run_side", run_side)
    plain, ours = capacity.real(tmp_path)
    assert (plain.value, ours.value) == (0.667, 3.556)
    last["ours"] += 1e-9
    with pytest.raises(RuntimeError, match="in little memory training gave"):
        capacity.real(tmp_path)
