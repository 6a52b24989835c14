"""Rewards by name, and what is said of a name that means none."""

from __future__ import annotations

import pytest

from fastrlhf.commands.options import OptionError
from fastrlhf.commands.rewards import find_rewards

SOURCE = """
from beside import LONGEST

calls = []


def shortness(prompts, completions):
    calls.append(1)
    return [LONGEST - len(completion) for completion in completions]


def length(prompts, completions):
    return [len(calls) for _ in completions]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("LONGEST = 100\n")
    (tmp_path / "judge.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("sys.modules", dict(__import__("sys").modules))
    return tmp_path


def find(names):
    return find_rewards(names, lambda name: f"the model {name}")


def test_functions_of_files_and_modules_and_models(folder):
    shortness, model = find(["judge.py:shortness", "runs/reward"])
    assert shortness(["a"], ["12345"]) == [95]
    assert model == "the model runs/reward"
    assert find("judge:shortness")[0](["a"], ["12345"]) == [95]
    assert find("hub/name") == ["the model hub/name"]


def test_the_functions_of_a_file_share_its_module(folder):
    shortness, length = find(["judge.py:shortness", f"{folder}/judge.py:length"])
    shortness(["a"], ["b"])
    assert length(["a"], ["b"]) == [1]


def test_a_folder_with_a_colon_is_a_model(folder):
    (folder / "runs:reward").mkdir()
    assert find("runs:reward") == ["the model runs:reward"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judge.py:shortnes", r"judge\.py has no function 'shortnes': did you mean 'shortness'\?"),
        ("judge.py:xyz", r"judge\.py has no function 'xyz': there are shortness, length"),
        ("beside.py:LONGEST", r"beside\.py:LONGEST is a int, expected a function"),
        ("beside.py:xyz", r"beside\.py has no function 'xyz': there are no functions"),
        ("nowhere.py:f", r"nowhere\.py:f: nowhere\.py does not exist"),
        ("nowhere:f", r"nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken.py:f", r"broken\.py cannot be imported: ZeroDivisionError.*broken\.py, line 2\)"),
        (7, r"rewards has 7 \(int\), expected a reward model"),
    ],
)
def test_what_is_no_reward(folder, name, message):
    (folder / "broken.py").write_text("one = 1\none / 0\n")
    with pytest.raises(OptionError, match=message):
        find(name)


def test_a_file_that_was_mended_is_read_again(folder):
    path = folder / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(OptionError):
        find("broken.py:f")
    path.write_text("def f(prompts, completions):\n    return [1.0]")
    assert find("broken.py:f")[0]([], []) == [1.0]
