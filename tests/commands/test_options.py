from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from fastrlhf.commands.options import OptionError, check_names, read_flags, read_yaml, typed


@dataclass
class Config:
    rate: float = 0.1
    steps: int | None = None
    name: str | None = None
    size: int | str = "auto"
    packing: bool = False


def test_flags():
    flags = [
        "--learning-rate",
        "1e-4",
        "--packing",
        "--max_length=8",
        "--peft",
        "{r: 4}",
        "--eval_dataset",
        "null",
    ]
    assert read_flags(flags) == {
        "learning_rate": "1e-4",
        "packing": True,
        "max_length": 8,
        "peft": {"r": 4},
        "eval_dataset": None,
    }
    assert read_flags(["--seed", "-1"]) == {"seed": -1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["seed", "3"], "'seed' stands where a flag is expected: write --name value"),
        (["--peft", "{r: 4"], r"--peft: '\{r: 4' is not YAML"),
    ],
)
def test_flags_that_cannot_be_read(flags, message):
    with pytest.raises(OptionError, match=message):
        read_flags(flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"c\.yaml cannot be read: No such file"),
        ("a: [", r"c\.yaml is not YAML"),
        ("- a\n- b", r"c\.yaml holds a list, expected `name: value` lines"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OptionError, match=message):
        read_yaml(path)


def test_an_empty_file_sets_nothing(tmp_path):
    path: Path = tmp_path / "c.yaml"
    path.write_text("# only a comment\n")
    assert read_yaml(path) == {}


def test_an_unknown_name_gets_the_nearest():
    check_names({"packing": 1}, ["packing"])
    with pytest.raises(OptionError, match=r"'paking' is no option: did you mean 'packing'\?"):
        check_names({"paking": 1}, ["max_length", "packing"])
    with pytest.raises(OptionError, match="'xyz' is no option: `fastrlhf init` prints all names"):
        check_names({"xyz": 1}, ["max_length", "packing"])


def test_numbers_that_yaml_reads_as_texts():
    given = {"rate": "1e-5", "steps": "12", "name": "1e-5", "size": "auto", "packing": True}
    assert typed(Config, given) == {
        "rate": 1e-5,
        "steps": 12,
        "name": "1e-5",
        "size": "auto",
        "packing": True,
    }
    with pytest.raises(OptionError, match="rate is 'fast', expected a number"):
        typed(Config, {"rate": "fast"})
