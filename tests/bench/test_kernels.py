from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.tables import TARGETS
from fastrlhf import cli
from fastrlhf.bench import kernels, kernels_plot, kernels_view
from fastrlhf.bench.kernels import Timing
from fastrlhf.bench.targets import Target, read_targets, targets_of
from fastrlhf.kernels import dispatch

CASES = Path(TARGETS).parent


def timing(contender, *seconds, operation="gae", case="[2, 3]", **others):
    return Timing(operation, case, contender, seconds, "cpu", 2, "2.13.0", **others)


def rows(*rounds, goals=()):
    return {row.contender: row for row in kernels.summarise(rounds, goals)}


def test_the_ratio_is_to_the_best_other_way_within_each_round():
    found = rows(
        [timing("eager", 8.0), timing("compiled", 4.0), timing("cpu", 1.0)],
        [timing("eager", 6.0), timing("compiled", 9.0), timing("cpu", 2.0)],
        [timing("eager", 8.0), timing("compiled", 8.0), timing("cpu", 1.0)],
    )
    cpu = found["cpu"]
    assert (cpu.speedup_low, cpu.speedup, cpu.speedup_high) == (3.0, 4.0, 8.0)
    assert found["eager"].speedup == 1.0 and found["eager"].speedup_low == 0.5


def test_our_own_backends_are_not_what_we_compare_with():
    found = rows([timing("eager", 4.0), timing("reference", 1.0), timing("cpu", 2.0)])
    assert found["cpu"].speedup == 2.0


def test_percentiles_are_of_all_measurements_in_milliseconds():
    found = rows(
        [timing("eager", *(i / 1000 for i in range(6)))], [timing("eager", *(i / 1000 for i in range(6, 11)))]
    )
    row = found["eager"]
    assert (row.p20_ms, row.p50_ms, row.p80_ms, row.measurements) == (2.0, 5.0, 8.0, 11)


def goal(against, target):
    return Target("gae", "[2, *]", against, target)


@pytest.mark.parametrize(
    ("target", "verdict"),
    [(4.0, "met"), (4.1, "level"), (4.2, "missed")],
    ids=["reached", "3 % short", "5 %"],
)
def test_a_target_is_judged_against_the_contender_that_it_names(target, verdict):
    found = rows(
        [timing("eager", 4.0), timing("fused", 1.5), timing("cpu", 1.0)], goals=[goal("eager", target)]
    )
    assert (found["cpu"].target, found["cpu"].reached) == (f"{target:g} x eager", "4")
    assert found["cpu"].verdict == verdict
    assert not found["eager"].target, "what is not ours has no target"


def test_several_targets_of_a_case_stand_side_by_side():
    goals = [goal("best", 2), goal("eager", 4), goal("no-such-peer", 1)]
    found = rows([timing("eager", 4.0), timing("fused", 1.5), timing("cpu", 1.0)], goals=goals)
    assert kernels_view.judged(found["cpu"]) == [
        ("2 x best", "1.5", "missed"),
        ("4 x eager", "4", "met"),
        ("1 x no-such-peer", "", "not measured"),
    ]


def test_a_target_beyond_the_memorys_bandwidth_says_what_it_would_need():
    """8 GB in a second are read at 8 GB/s; twice as fast as 1.5 s would be 10.7."""
    case = [timing("eager", 1.5), timing("cpu", 1.0, nbytes=8 * 10**9, read_gbps=10.0)]
    found = rows(case, goals=[goal("eager", 2)])["cpu"]
    assert (found.gbps, found.read_gbps) == (8.0, 10.0)
    assert found.verdict == "missed: needs 10.7 GB/s, the memory gives 10.0"
    reachable = rows(case, goals=[goal("eager", 1.8)])["cpu"]
    assert reachable.verdict == "missed", "9.6 GB/s are there to be had"


def test_a_bound_of_memory_is_held_against_the_worst_round():
    held = [[timing("eager", 1.0), timing("cpu", 1.0, temporary_bytes=n)] for n in (20 * 10**6, 33 * 10**6)]
    found = rows(*held, goals=[goal("temporary_mb", 32)])["cpu"]
    assert (found.target, found.reached, found.verdict) == ("32 MB", "33", "missed")


def test_the_particular_target_goes_before_the_general():
    goals = [Target("linear", "[1, *] f32", "eager", 1.8), Target("linear", "* f32", "eager", 2.5)]
    assert targets_of(goals, "linear", "[1, 576] x [9, 576] f32") == goals[:1]
    assert targets_of(goals, "linear", "[2, 576] x [9, 576] f32") == goals[1:]
    assert targets_of(goals, "linear", "[2, 576] x [9, 576] f32, more") == []
    assert targets_of(goals, "glu", "[2, 576] f32") == []


def test_a_csv_keeps_the_operations_that_were_not_timed(tmp_path):
    path = tmp_path / "kernels.csv"
    old, new = (
        kernels.summarise([[timing("eager", s), timing("eager", s, operation="b")]]) for s in (1.0, 2.0)
    )
    kernels_view.write_csv(old, path)
    kernels_view.write_csv([row for row in new if row.operation == "gae"], path)
    assert {row.operation: row.p50_ms for row in kernels_view.read_csv(path)} == {"b": 1000, "gae": 2000}


def test_a_csv_comes_back_as_it_was_written(tmp_path):
    case = [
        timing("eager", 2.0),
        timing("cpu", 1.0, nbytes=10**9, flops=3, temporary_bytes=5, read_gbps=12.5),
    ]
    written = kernels.summarise([case], [goal("eager", 3), goal("best", 1)])
    kernels_view.write_csv(written, tmp_path / "kernels.csv")
    assert kernels_view.read_csv(tmp_path / "kernels.csv") == written


def test_a_csv_of_other_columns_is_not_read(tmp_path):
    (tmp_path / "kernels.csv").write_text("operation,case\n")
    with pytest.raises(ValueError, match=r"expected .*'speedup'.*: remove it"):
        kernels_view.read_csv(tmp_path / "kernels.csv")


def test_the_plot_has_a_bar_for_each_kernel_of_ours(tmp_path):
    cases = [(operation, f"[{n}]") for operation in ("gae", "linear") for n in range(50)]
    found = kernels.summarise(
        [
            [
                timing(contender, seconds, operation=operation, case=case)
                for operation, case in cases
                for contender, seconds in (("eager", 4.0), ("reference", 5.0), ("cpu", 1.0))
            ]
        ]
    )
    panels = []
    original = kernels_plot._panel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            kernels_plot,
            "_panel",
            lambda axes, name, bars, *_: panels.append((name, bars)) or original(axes, name, bars, *_),
        )
        kernels_plot.draw(found, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").stat().st_size > 5000
    drawn = [(name, row.case) for name, bars in panels for row in bars]
    assert sorted(drawn) == sorted(cases), "an operation of many cases has several panels"
    assert all(row.contender == "cpu" for _, bars in panels for row in bars)


def test_panels_share_the_columns_without_an_overlap():
    heights = [3.0, 1.0, 2.0, 2.0, 1.0]
    columns = kernels_plot._side_by_side(heights)
    for column in columns:
        assert all(before[2] <= after[1] for before, after in pairwise(column))
    placed = sorted((index, bottom - top) for column in columns for index, top, bottom in column)
    assert placed == list(enumerate(heights))
    assert max(column[-1][2] for column in columns) <= 4.0


def test_the_table_fits_a_narrow_console_and_names_what_was_missed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    case = "[16, 576] x [49152, 576] gradient of the weight"
    goals = [Target("gae", "*", "eager", 5), Target("gae", "*", "best", 1.5)]
    others = {"nbytes": 10**7, "read_gbps": 12.0}
    timings = [timing("eager", 4.0), timing("OpenBLAS", 2.0), timing("cpu", 1.0, **others)]
    kernels_view.show(
        kernels.summarise([[*timings, *(timing(t.contender, 3.0, case=case) for t in timings)]], goals)
    )
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 110
    assert "2.00" in told and "met: 2 (1.5 x best)" in told and "missed: 4 (5 x eager)" in told
    assert "targets: 1 of 4 met" in told and "a plain sum reads 12.0 to 12.0 GB/s" in told


def test_every_operation_has_a_benchmark():
    inside = {
        "adamw_each": "adamw",
        "attention_backward": "attention",
        "rope_inplace": "rope",
        "rope_cache": "rope",
        "end_step": "begin_step",
    }
    for operation in dispatch.OPERATIONS:
        stem = inside.get(operation, operation.removesuffix("_backward"))
        assert (CASES / f"{stem}.py").exists(), f"benchmarks/kernels/{stem}.py would time {operation}"


def test_every_target_is_of_an_operation_with_cases():
    for target in read_targets(TARGETS):
        assert (CASES / f"{target.operation}.py").exists(), target


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no-such-operation"], "no cases for no-such-operation; there are: .*gae"),
        (["gae", "--rounds", "0"], "whole numbers of at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, problem):
    with pytest.raises(SystemExit, match=problem):
        cli.main(["bench", "kernels", *arguments])


@pytest.mark.slow
def test_a_round_of_gae_from_end_to_end(tmp_path):
    assert (
        cli.main(["bench", "kernels", "gae", "--rounds", "1", "--no-compiled", "--out", str(tmp_path)]) == 0
    )
    found = kernels_view.read_csv(tmp_path / "kernels.csv")
    assert {"eager", "product", "reference"} <= {row.contender for row in found}
    assert "[64, 512] and whitening" in {row.case for row in found}
    for row in found:
        assert (row.gbps is None) == (row.contender in ("eager", "product"))
        assert row.read_gbps > 0 and row.temporary_mb is not None
