"""The demo's reward: how positive a completion reads to VADER, a lexicon of 7,500 words with rules.

Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM
2014. It is cheap and can be gamed, by stacking positive words: `judge.py` watches for that and is never the
reward.
"""

from collections.abc import Sequence
from functools import cache

from fastrlhf.demo.assets import VADER, require


def vader_reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """VADER's compound score of each completion, in [-1, 1]; the prompts are not read, and only paired.

    An empty completion scores 0. Raises `ValueError` if the two lengths differ, `MissingAssetError` if the
    package vaderSentiment is absent.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"prompts ({len(prompts)}) and completions ({len(completions)}) must pair up")
    return [_analyzer().polarity_scores(completion)["compound"] for completion in completions]


@cache
def _analyzer():
    require(VADER)
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
