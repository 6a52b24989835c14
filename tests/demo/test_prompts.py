import pytest

from fastrlhf.demo import prompts as module
from fastrlhf.demo.prompts import labelled_reviews, review_prompts


def write_reviews(folder, monkeypatch, rows: list[tuple[str, int, str]]) -> None:
    """Stand a small table in for the package's, in its format."""
    path = folder / "reviews.csv"
    lines = ["text,label,source", *(f'"{text}",{label},{source}' for text, label, source in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(module, "asset", lambda package, relative: path)


@pytest.fixture(scope="module")
def prompts(movie_reviews) -> dict[str, list[str]]:
    """All prompts of both splits: the file is read in 0.7 s, and the tests share what they can."""
    return {"train": review_prompts(5989, seed=1), "test": review_prompts(1482, seed=1, split="test")}


@pytest.fixture(scope="module")
def labelled(movie_reviews) -> dict[str, list[tuple[str, int]]]:
    return {split: labelled_reviews(seed=1, split=split) for split in ("train", "test")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_prompts_are_different_short_texts_without_markup(prompts, split):
    assert len(prompts[split]) == len(set(prompts[split]))
    assert {len(prompt.split()) for prompt in prompts[split]} == {6}
    assert not any("<br" in prompt or "\x96" in prompt for prompt in prompts[split])


def test_a_seed_fixes_the_prompts_and_a_smaller_count_is_their_beginning(prompts):
    assert prompts["train"][:2] == [
        "There are some comments about this",
        "This movie was terrible!I rented it",
    ]
    assert review_prompts(10, seed=1) == prompts["train"][:10]
    assert review_prompts(1, seed=2) == ["Jimmy Stewart and Anthony Mann teamed"]


def test_train_and_test_prompts_share_none(prompts):
    assert not set(prompts["train"]) & set(prompts["test"])


def test_labelled_reviews_give_no_prompts_and_their_splits_share_none(labelled):
    train, test = ({text for text, _ in labelled[split]} for split in ("train", "test"))
    prompted = {text for text, _ in module._reviews(module.PROMPTS)}
    assert (len(train), len(test), len(prompted)) == (14722, 2584, 7596)
    assert not train & test and not train & prompted and not test & prompted


def test_labelled_reviews_are_whole_and_mixed_and_in_the_seeds_order(labelled):
    first = labelled["test"][:200]
    assert labelled_reviews(200, seed=1, split="test") == first != labelled_reviews(200, seed=2, split="test")
    assert 70 < sum(label for _, label in first) < 130
    assert sum(len(text.split()) for text, _ in first) > 200 * 150


def test_a_review_is_cleaned_and_kept_once_and_other_sources_are_left_out(tmp_path, monkeypatch):
    rows = [
        ("Good<br /><br />film \x96 <i>really</i>\x85 isn\x92t it", 1, "imdb"),
        ("Good film - really ... isn't it", 1, "imdb"),
        ("A tomato says so", 0, "rotten_tomatoes"),
        ("I <3 it, 5 < 6", 0, "imdb"),
    ]
    write_reviews(tmp_path, monkeypatch, rows)
    kept = list(module._reviews(range(100)))
    assert kept == [("Good film - really ... isn't it", 1), ("I <3 it, 5 < 6", 0)]


def test_a_review_no_longer_than_its_prompt_is_skipped(tmp_path, monkeypatch):
    write_reviews(tmp_path, monkeypatch, [("one two three", 1, "imdb"), ("one two three four", 1, "imdb")])
    monkeypatch.setattr(module, "PROMPTS", range(100))
    monkeypatch.setitem(module.PROMPT_SPLITS, "train", range(100))
    assert review_prompts(1, seed=0, words=3) == ["one two three"]
    with pytest.raises(ValueError, match="count must be between 0 and the 0 that review_prompts has, got 1"):
        review_prompts(1, seed=0, words=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 3}, "count must be between 0 and the 2 that review_prompts has, got 3"),
        ({"count": -1}, "count must be between 0 .* got -1"),
        ({"count": 1, "words": 0}, "words must be at least 1, got 0"),
        ({"count": 1, "split": "valid"}, "split must be one of 'train', 'test', got 'valid'"),
    ],
    ids=["too many", "negative", "no words", "unknown split"],
)
def test_a_bad_argument_is_named(arguments, message, tmp_path, monkeypatch):
    write_reviews(
        tmp_path, monkeypatch, [(f"{word} two three four five six seven", 1, "imdb") for word in "ab"]
    )
    monkeypatch.setattr(module, "PROMPTS", range(100))
    monkeypatch.setitem(module.PROMPT_SPLITS, "train", range(100))
    with pytest.raises(ValueError, match=message):
        review_prompts(**arguments, seed=0)
