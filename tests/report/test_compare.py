"""The page of several runs: what is read, drawn, and said of them."""

import base64
import io
import json

import numpy as np
import pytest
import yaml

pytest.importorskip("matplotlib")

from PIL import Image

from fastrlhf.report.compare import CHARTS, write_comparison
from fastrlhf.report.runs import Run, read_runs
from fastrlhf.report.theme import DARK, LIGHT
from tests.report.test_page import Page

PPO = [{"step": step, "objective/scores": 0.1 * step, "elapsed_s": 2.0 * step} for step in range(1, 6)]
GRPO = [{"step": step, "reward": 1 - 0.1 * step, "rewards/brevity/mean": 0.5} for step in range(1, 6)]
SFT = [
    {"step": 1, "loss": 2.5},
    {"step": 2, "loss": 1.5},
    {"step": 2, "train_runtime": 75.0, "train_loss": 2.0},
]


def page(tmp_path, *runs):
    return Page(write_comparison(runs, tmp_path / "new folder" / "page.html"))


def pictures(found):
    """The plots by what they show, light ones."""
    described = {}
    for tag, name, value in found.attributes:
        if (tag, name) == ("img", "src"):
            png = value.removeprefix("data:image/png;base64,")
            source = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
        elif (tag, name) == ("img", "alt"):
            described[value.removesuffix(" over the steps")] = source
    return described


def has(picture, color):
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return (picture == wanted).all(axis=-1).any()


def test_a_metric_of_two_names_is_one_plot_with_a_line_for_each_run(tmp_path):
    found = page(tmp_path, Run("ppo", PPO), Run("grpo", GRPO), Run("sft", SFT))
    drawn = pictures(found)
    assert list(drawn) == ["Reward", "Loss", "rewards/brevity/mean"]
    first, second, third, _ = LIGHT.lines
    assert [[has(drawn[name], color) for color in (first, second, third)] for name in drawn] == [
        [True, True, False],
        [False, False, True],
        [False, True, False],
    ]
    assert "3 runs" in found.text and "Further metrics" in found.text


def test_the_table_says_how_each_run_went(tmp_path):
    record = {"options": {"model": "<b>runs/sft"}}
    found = page(tmp_path, Run("ppo", PPO, record), Run("sft", SFT), Run("empty", []))
    assert "ppo <b>runs/sft 5 10.0 s Reward 0.10 → 0.50" in found.text
    assert "sft 2 1 min 15 s Loss 2.50 → 1.50" in found.text
    assert "empty none" in found.text
    assert "b" not in found.tags


def test_what_differs(tmp_path):
    records = [
        {
            "options": {"rewards": "a.py:f"},
            "configuration": {"kl_coef": 0.05, "seed": 1, "output_dir": "one"},
        },
        {"options": {"rewards": "a.py:f"}, "configuration": {"kl_coef": 0.1, "seed": 1, "output_dir": "two"}},
        {"options": {"peft": {"r": 2}}, "configuration": {"beta": 0.1, "seed": 2, "output_dir": "three"}},
    ]
    one, two, three = (
        Run(name, PPO, record) for name, record in zip(("one", "two", "three"), records, strict=True)
    )
    bare = Run("bare", PPO)
    found = page(tmp_path, one, bare, two)
    assert found.text.endswith("What differs Setting one two kl_coef 0.05 0.1")
    found = page(tmp_path, one, three)
    assert found.text.endswith("Setting one three rewards a.py:f not set peft not set {'r': 2} seed 1 2")
    assert "What differs" not in page(tmp_path, one, bare).text


def test_one_run(tmp_path):
    record = {"options": {"model": "runs/sft"}, "versions": {"torch": "2.13.0"}}
    found = page(tmp_path, Run("ppo", PPO, record))
    assert "5 steps" in found.text and "model runs/sft" in found.text and "torch 2.13.0" in found.text
    assert "What differs" not in found.text


def test_the_page_needs_nothing_and_is_dark_on_dark_screens(tmp_path):
    found = page(tmp_path, Run("ppo", PPO))
    addresses = [value for _, name, value in found.attributes if name in ("src", "srcset", "href")]
    assert all(address.startswith("data:") for address in addresses) and "script" not in found.tags
    [dark] = [value for tag, name, value in found.attributes if (tag, name) == ("source", "srcset")]
    picture = Image.open(io.BytesIO(base64.b64decode(dark.split(",")[1]))).convert("RGB")
    assert has(np.asarray(picture), DARK.paper) and not has(np.asarray(picture), LIGHT.paper)
    assert list((tmp_path / "new folder").iterdir()) == [tmp_path / "new folder" / "page.html"]


def test_more_runs_than_colours_and_names_that_are_no_labels(tmp_path):
    names = ["_hidden", "$x$ and $y", "a name that is much longer than a legend has room for", *"abcdef"]
    found = page(
        tmp_path,
        *(
            Run(name, [{**row, "objective/scores": k + row["objective/scores"]} for row in PPO])
            for k, name in enumerate(names)
        ),
    )
    [picture] = pictures(found).values()
    assert picture.shape == (576, 1024, 3) and all(has(picture, color) for color in LIGHT.lines)


def test_every_metric_is_of_one_chart():
    names = [name for chart in CHARTS for name in chart.metrics]
    assert len(names) == len(set(names))


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder


def test_runs_are_read_from_what_trainers_write(tmp_path):
    ours = write(tmp_path / "a" / "run", "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in PPO))
    write(ours, "run.yaml", yaml.safe_dump({"options": {"model": "m"}}))
    theirs = tmp_path / "b" / "run"
    for step in (5, 10):
        write(
            theirs / f"checkpoint-{step}", "trainer_state.json", json.dumps({"log_history": SFT[: step // 5]})
        )
    last = write(tmp_path / "last", "trainer_state.json", json.dumps({"log_history": GRPO}))
    runs = read_runs([ours, theirs, last])
    assert [run.rows for run in runs] == [PPO, SFT[:2], GRPO]
    assert [run.record for run in runs] == [{"options": {"model": "m"}}, {}, {}]
    assert [run.name for run in runs] == ["a/run", "b/run", f"{tmp_path.name}/last"]
    assert [run.name for run in read_runs([ours, last])] == ["run", "last"]
    assert [run.name for run in read_runs([last, last])] == ["last (1)", "last (2)"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("notes.txt", "", FileNotFoundError, "holds no metrics.jsonl and no trainer_state.json"),
        ("metrics.jsonl", "x\n{}\n", ValueError, "metrics.jsonl:1: not a line of JSON"),
        ("trainer_state.json", "{", ValueError, "trainer_state.json: not JSON"),
        ("trainer_state.json", "[]", ValueError, "trainer_state.json: no log_history"),
        ("run.yaml", "a: [", ValueError, "run.yaml: not YAML"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, error, message):
    folder = write(tmp_path / "run", name, content)
    if name == "run.yaml":
        write(folder, "metrics.jsonl", "")
    with pytest.raises(error, match=message):
        read_runs([folder])
