"""Tables of a document are made from the results, and the committed ones are those of the committed file."""

from __future__ import annotations

import re

import pytest

from benchmarks import tables
from fastrlhf.bench import kernels, kernels_document
from fastrlhf.bench.kernels import Timing
from fastrlhf.bench.kernels_view import read_csv
from fastrlhf.bench.targets import Target, read_targets

GOALS = [Target("gae", "*", "eager", 3.0), Target("gae", "*", "reference", 2.0)]


def some_rows():
    timings = [
        Timing("gae", f"[{n}, 3]", contender, (seconds * n,), "cpu", 2, "2.13.0", read_gbps=12.0)
        for n in (1, 2)
        for contender, seconds in (("eager", 4.0), ("reference", 5.0), ("cpu", 0.5 * (3 - n)))
    ]
    return kernels.summarise([timings], GOALS)


def test_a_target_has_one_line_with_its_range_and_how_many_cases_met_it():
    told = kernels_document.tables(some_rows(), GOALS)
    assert "| `gae` | * | 3 x eager | 4 to 8 | 2 of 2 |" in told
    assert "| `gae` | * | 2 x reference | 5 to 10 | 2 of 2 |" in told


def test_a_case_has_one_line_with_the_best_other_way():
    told = kernels_document.tables(some_rows(), GOALS)
    (line,) = [line for line in told.splitlines() if "[1, 3]" in line]
    assert "4e+03 ms (PyTorch)" in line and "4.00 (4.00 to 4.00)" in line and "3 x eager: 4, met" in line


def test_only_what_stands_between_the_markers_is_replaced(tmp_path):
    document = tmp_path / "a.md"
    document.write_text(f"before\n{kernels_document.BEGIN}\nold\n{kernels_document.END}\nafter\n")
    kernels_document.fill(document, some_rows(), GOALS)
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    kernels_document.fill(document, some_rows(), GOALS)
    assert document.read_text() == text


def test_a_document_without_markers_is_an_error(tmp_path):
    (tmp_path / "a.md").write_text(kernels_document.END)
    with pytest.raises(ValueError, match="does not hold <!-- kernels: begin -->"):
        kernels_document.fill(tmp_path / "a.md", some_rows(), GOALS)


def test_the_committed_tables_are_those_of_the_committed_results():
    between = re.search(
        f"{kernels_document.BEGIN}\n(.*)\n{kernels_document.END}", tables.DOCUMENT.read_text(), re.DOTALL
    )
    expected = kernels_document.tables(read_csv(tables.RESULTS), read_targets(tables.TARGETS))
    assert between.group(1) == expected, "run `python -m benchmarks.tables`"
