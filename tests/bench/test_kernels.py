from __future__ import annotations

import csv

import pytest

from fastrlhf import cli
from fastrlhf.bench import kernels
from fastrlhf.bench.kernels import Timing


def timing(contender, *seconds, operation="gae", case="(2, 3)"):
    return Timing(operation, case, contender, seconds, "cpu", 2, "2.13.0")


def rows(*rounds):
    return {row.contender: row for row in kernels.summarise(rounds)}


def test_the_ratio_is_to_the_best_other_way_within_each_round():
    found = rows(
        [timing("plain", 8.0), timing("compiled", 4.0), timing("cpu", 1.0)],
        [timing("plain", 6.0), timing("compiled", 9.0), timing("cpu", 2.0)],
        [timing("plain", 8.0), timing("compiled", 8.0), timing("cpu", 1.0)],
    )
    cpu = found["cpu"]
    assert (cpu.speedup_low, cpu.speedup, cpu.speedup_high) == (3.0, 4.0, 8.0)
    assert found["plain"].speedup == 1.0 and found["plain"].speedup_low == 0.5


def test_our_own_backends_are_not_what_we_compare_with():
    found = rows([timing("plain", 4.0), timing("reference", 1.0), timing("cpu", 2.0)])
    assert found["cpu"].speedup == 2.0


def test_percentiles_are_of_all_measurements_in_milliseconds():
    found = rows(
        [timing("plain", *(i / 1000 for i in range(6)))], [timing("plain", *(i / 1000 for i in range(6, 11)))]
    )
    row = found["plain"]
    assert (row.p20_ms, row.p50_ms, row.p80_ms, row.measurements) == (2.0, 5.0, 8.0, 11)


def test_a_csv_keeps_the_operations_that_were_not_timed(tmp_path):
    path = tmp_path / "kernels.csv"
    old, new = (
        kernels.summarise([[timing("plain", s), timing("plain", s, operation="b")]]) for s in (1.0, 2.0)
    )
    kernels.write_csv(old, path)
    kernels.write_csv([row for row in new if row.operation == "gae"], path)
    with open(path, newline="") as file:
        assert {line["operation"]: float(line["p50_ms"]) for line in csv.DictReader(file)} == {
            "b": 1000,
            "gae": 2000,
        }


def test_the_plot_and_the_table_show_our_backend(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = kernels.summarise([[timing("plain", 4.0), timing("cpu", 1.0)]])
    kernels.draw(found, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").stat().st_size > 5000
    kernels.show(found)
    assert "4.00 (4.00 to 4.00)" in capsys.readouterr().out


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
    with open(tmp_path / "kernels.csv", newline="") as file:
        contenders = {line["contender"] for line in csv.DictReader(file)}
    assert {"plain", "reference"} <= contenders
