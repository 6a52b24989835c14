"""`fastrlhf report`."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

from fastrlhf.cli import main
from tests.support.groups import group_trainer
from tests.support.tiny import tiny_trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a PPO and of a GRPO run, one with our metrics, one with transformers' state."""
    from fastrlhf.report.callback import JsonlCallback

    ppo, grpo = tmp_path_factory.mktemp("ppo"), tmp_path_factory.mktemp("grpo")
    trainer = tiny_trainer(ppo, callbacks=[JsonlCallback(ppo / "metrics.jsonl")])
    trainer.train()
    group_trainer("grpo", grpo, save_strategy="steps", save_steps=4).train()
    return ppo, grpo


def report(capsys, *words):
    assert main(["report", *map(str, words)]) == 0
    return capsys.readouterr().out.strip()


def test_several_runs_on_one_page(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert report(capsys, *runs) == "report.html"
    page = (tmp_path / "report.html").read_text()
    assert all(run.name in page for run in runs)
    assert page.count('alt="Reward over the steps"') == 1
    assert page.count('alt="rewards/small_words/mean over the steps"') == 1


def test_one_run_has_its_page_beside_it_or_where_it_is_wanted(runs, tmp_path, capsys):
    ppo, _ = runs
    capsys.readouterr()
    assert report(capsys, ppo) == str(ppo / "report.html")
    assert "4 steps" in (ppo / "report.html").read_text()
    elsewhere = tmp_path / "new" / "page.html"
    assert report(capsys, ppo, "--out", elsewhere) == str(elsewhere) and elsewhere.is_file()


def test_the_demos_run_keeps_its_samples(runs, tmp_path, capsys):
    ppo, _ = runs
    (tmp_path / "metrics.jsonl").write_text((ppo / "metrics.jsonl").read_text())
    sample = {"prompt": "once", "before": "there was", "after": "there is"}
    (tmp_path / "summary.json").write_text(json.dumps({"title": "A demo", "samples": [sample]}))
    report(capsys, tmp_path)
    assert "there is" in (tmp_path / "report.html").read_text()


def test_a_folder_without_a_run_ends_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"fastrlhf report: .* holds no metrics\.jsonl"):
        main(["report", str(tmp_path)])
