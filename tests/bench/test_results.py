from __future__ import annotations

import csv
from dataclasses import dataclass

import pytest

from fastrlhf.bench.peer_targets import TARGETS, Target, verdict
from fastrlhf.bench.results import merge_csv, provenance, spread


@dataclass(frozen=True)
class Row:
    mode: str
    model: str
    contender: str
    seconds: float


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_spread_is_median_smallest_and_largest():
    assert spread([3.0, 1.0, 2.00049]) == (2.0, 1.0, 3.0)
    assert str(spread([1.5])) == "1.50 (1.50 to 1.50)"


def test_the_rows_of_a_case_are_replaced_together_and_others_stay(tmp_path):
    path = tmp_path / "results" / "found.csv"
    keys = ("mode", "model")
    merge_csv(path, [Row("full", "17m", "ours", 1.0), Row("full", "17m", "trl", 2.0)], keys)
    merge_csv(path, [Row("eos", "17m", "ours", 3.0)], keys)
    lines = merge_csv(path, [Row("full", "17m", "ours", 4.0)], keys)
    assert [(line["mode"], line["contender"], line["seconds"]) for line in lines] == [
        ("eos", "ours", "3.0"),
        ("full", "ours", "4.0"),
    ]
    assert read(path) == lines


def test_numbers_are_in_order_of_their_size(tmp_path):
    rows = [Row("b", batch, "ours", 1.0) for batch in ("16", "8", "1")]
    lines = merge_csv(tmp_path / "found.csv", rows, ("mode", "model"))
    assert [line["model"] for line in lines] == ["1", "8", "16"]


def test_provenance_names_machine_and_versions_and_no_date():
    found = provenance(2, "trl==1.12.0")
    assert found.threads == 2 and found.cores >= 1 and found.cpu
    assert found.torch.startswith("2.") and found.peer == "trl==1.12.0"


@pytest.mark.parametrize(
    ("figure", "value", "said"),
    [
        ("speed", 1.7, "≥ 1.7: met"),
        ("speed", 1.69, "≥ 1.7: missed"),
        ("speed", float("nan"), "≥ 1.7: missed"),
        ("memory", 1.7, "≤ 1.7: met"),
        ("memory", 1.71, "≤ 1.7: missed"),
    ],
)
def test_a_target_says_met_or_missed(figure, value, said):
    assert Target("case", "peer", figure, 1.7).verdict(value) == said


def test_a_verdict_is_that_of_its_own_case_peer_and_figure():
    assert verdict("lora smollm2", "trl+peft", "memory", 0.2) == "≤ 0.25: met"
    assert verdict("lora smollm2", "trl+peft", "speed", 4.9) == "≥ 5: missed"
    assert verdict("lora 17m", "trl+peft", "speed", 9.0) == ""


def test_no_figure_has_two_targets():
    assert len({(target.case, target.peer, target.figure) for target in TARGETS}) == len(TARGETS)
