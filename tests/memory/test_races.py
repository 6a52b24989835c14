"""Copies beside AdamW, under ThreadSanitizer (see tests/support/copies_and_adamw.cpp)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from native_build.toolchain import Missing, find_cxx

ROOT = Path(__file__).parents[2]
RACE = 66  # the exit status that ThreadSanitizer is told to give


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program, built; skips where the compiler cannot."""
    try:
        cxx = find_cxx(os.environ).command
    except Missing as missing:
        pytest.skip(str(missing))
    made = tmp_path_factory.mktemp("races") / "program"
    csrc = ROOT / "fastrlhf" / "csrc"
    sources = [ROOT / "tests" / "support" / "copies_and_adamw.cpp", csrc / "cpu" / "adamw.cpp"]
    flags = ["-std=c++17", "-O2", "-g", "-fsanitize=thread", "-fno-math-errno", "-Wno-psabi", f"-I{csrc}"]
    objects = []
    for source, openmp in zip(sources, ([], ["-fopenmp"]), strict=True):
        objects.append(str(made.with_suffix(f".{source.stem}.o")))
        command = [*cxx, *flags, *openmp, "-c", str(source), "-o", objects[-1]]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
    # without -fopenmp: the program has the two functions of the loop itself
    linked = subprocess.run(
        [*cxx, "-fsanitize=thread", "-pthread", *objects, "-o", str(made)], capture_output=True, text=True
    )
    if "cannot find" in linked.stderr:
        pytest.skip("the compiler has no libtsan")
    assert linked.returncode == 0, linked.stderr
    return made


def run(program, left_out):
    environment = {**os.environ, "TSAN_OPTIONS": f"exitcode={RACE} halt_on_error=1"}
    # addresses that are laid out at random can be where ThreadSanitizer does not expect any
    command = ["setarch", "-R", str(program), left_out]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_no_race_between_the_copies_and_the_updates(program):
    done = run(program, "nothing")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same bits\n"


@pytest.mark.parametrize("left_out", ["arrival", "departure"])
def test_a_wait_that_is_left_out_is_noticed(program, left_out):
    done = run(program, left_out)
    assert done.returncode == RACE
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
