import pytest

from fastrlhf.demo import assets, reward
from fastrlhf.demo.reward import vader_reward


@pytest.mark.usefixtures("vader")
def test_the_score_is_vaders_and_only_of_the_completion():
    # The lexicon gives good 1.9 and bad -2.5; a sum x is normalised to x / sqrt(x^2 + 15).
    completions = ["good", "The plot is bad.", "", "the table"]
    by_hand = [1.9 / (1.9**2 + 15) ** 0.5, -2.5 / (2.5**2 + 15) ** 0.5, 0.0, 0.0]
    scores = vader_reward(["An awful, horrible film"] * 4, completions)
    assert scores == pytest.approx(by_hand, abs=5e-5)
    assert scores == vader_reward([""] * 4, completions)


@pytest.mark.usefixtures("vader")
def test_the_score_stays_between_minus_one_and_one():
    scores = vader_reward(["", ""], ["love great best wonderful " * 50, "hate awful worst terrible " * 50])
    assert -1 <= scores[1] < -0.99 < 0.99 < scores[0] <= 1


def test_prompts_and_completions_must_pair_up():
    with pytest.raises(ValueError, match=r"prompts \(2\) and completions \(1\) must pair up"):
        vader_reward(["a", "b"], ["c"])


def test_an_absent_vader_says_how_to_install_it(monkeypatch):
    reward._analyzer.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(assets.MissingAssetError, match=r"pip install vaderSentiment==3\.3\.2"):
        vader_reward([""], [""])
