"""The count of a step's kernels, bytes and memory beside a peer's."""

from __future__ import annotations

import csv

import pytest
from accelerate.state import AcceleratorState

from fastrlhf import cli
from fastrlhf.bench import launches, launches_command, side_launches
from fastrlhf.bench.results import provenance

WHERE = provenance(2, "trl==1.12.0")


def step(kernels, read, peak):
    return {
        "launches": {"aten::mm": kernels - 1, "norm": 1},
        "waits": {"a": 1, "b": 2},
        "read": read,
        "written": 10**6,
        "flops": 5 * 10**9,
        "peak": peak,
    }


FOUND = {"ours": step(100, 2 * 10**6, 10**6), "trl": step(250, 9 * 10**6, 4 * 10**6)}


def test_a_row_has_the_counts_and_our_shares():
    ours, trl = launches.summarise("full", "17m", FOUND, WHERE)
    assert (trl.launches, trl.read_mb, trl.written_mb, trl.gflop, trl.peak_mb, trl.waits) == (
        *(250, 9.0, 1.0),
        *(5.0, 4.0, 3),
    )
    assert (trl.ours_launches, trl.ours_bytes, trl.ours_peak) == (0.4, 0.3, 0.25)
    assert (ours.ours_launches, ours.ours_bytes, ours.ours_peak, ours.peer) == (1, 1, 1, "trl==1.12.0")


def test_the_table_has_verdicts_and_the_kernels_that_dominate(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    launches.show(launches.summarise("full", "17m", FOUND, WHERE), FOUND)
    shown = capsys.readouterr().out
    assert "≤ 0.333: missed" in shown and "≤ 0.75: met" in shown
    assert "ours launches most: aten::mm 99, norm 1" in shown


@pytest.mark.parametrize(("mode", "peer"), [("full", "trl"), ("lora", "trl+peft")])
def test_both_sides_get_the_same_job(mode, peer, tmp_path, monkeypatch):
    asked = []

    def run_side(module, job, *, threads, peers=()):
        asked.append((module, job.pop("side"), job, threads, list(peers)))
        return FOUND["ours"]

    monkeypatch.setattr(launches, "run_side", run_side)
    assert set(launches.count(mode, "17m", threads=2, trl=tmp_path)) == {"ours", peer}
    job = {"mode": mode, "model": "17m", "steps": 1, "seed": 1}
    module = "fastrlhf.bench.side_launches"
    assert asked == [(module, "ours", job, 2, []), (module, "trl", job, 2, [tmp_path])]


@pytest.fixture
def accelerate_state():
    """What accelerate knows of the device is of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("accelerate_state")
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_our_step_is_counted_on_the_simulated_accelerator(mode, tmp_path):
    job = {"side": "ours", "mode": mode, "model": "tiny", "steps": 1, "seed": 1, "folder": str(tmp_path)}
    found = side_launches.measure(job)
    assert found["launches"]["ppo_loss"] == 4, "an epoch each, of one step"
    assert found["launches"]["linear_logprob"] > 4 and found["launches"]["gae"] == 1
    assert found["read"] > found["written"] > 0 and found["flops"] > 0
    parameters = 4 * (96 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64))
    assert found["peak"] > parameters


def test_the_command_writes_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launches, "run_side", lambda *args, **options: FOUND["ours"])
    monkeypatch.setattr(launches_command, "peer_folder", lambda peer, quick: tmp_path)
    for mode in ("full", "lora"):
        assert cli.main(["bench", "launches", "--quick", "--mode", mode, "--out", str(tmp_path)]) == 0
    with open(tmp_path / "launches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], row["contender"]) for row in rows] == [
        *(("full", "ours"), ("full", "trl")),
        *(("lora", "ours"), ("lora", "trl+peft")),
    ]
    assert str(tmp_path / "launches.csv") in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(SystemExit, match="--threads takes a whole number"):
        cli.main(["bench", "launches", "--threads", "0"])
