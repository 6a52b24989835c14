import pytest
import torch

from fastrlhf.demo.embed import MAX_TOKENS, Embedder


@pytest.fixture(scope="module")
def embedder(minilm) -> Embedder:
    return Embedder()


def test_embeddings_have_length_one_and_no_gradient(embedder):
    embeddings = embedder.embed(["A film.", "", "word " * 1000], batch_size=2)
    assert embeddings.shape == (3, 384) and embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_no_texts_give_no_embeddings(embedder):
    assert embedder.embed([], batch_size=4).shape == (0, 384)


def test_the_batch_a_text_is_in_does_not_change_its_embedding(embedder):
    texts = [
        "Short.",
        "A much longer sentence, which makes the short one be padded by many tokens.",
        "Middling one",
    ]
    together = embedder.embed(texts, batch_size=3)
    alone = embedder.embed(texts, batch_size=1)
    assert (together - alone).abs().max() < 1e-6


def test_a_text_is_cut_at_the_models_length(embedder):
    head = "word " * (MAX_TOKENS - 2)  # [CLS] and [SEP] take two places
    ends = embedder.embed(
        [head, head + "terrible nonsense", "word " * 50 + "terrible nonsense"], batch_size=1
    )
    assert torch.equal(ends[0], ends[1]) and not torch.allclose(ends[1], ends[2], atol=1e-3)


def test_neighbours_in_meaning_are_neighbours_in_space(embedder):
    film, movie, soup = embedder.embed(
        ["The film was dull.", "That movie bored me.", "Peel the onions for the soup."], batch_size=3
    )
    assert film @ movie > 0.5 > 0.2 > film @ soup


def test_a_batch_must_hold_a_text(embedder):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embedder.embed(["a"], batch_size=0)


@pytest.mark.usefixtures("minilm", "no_network")
def test_loading_and_embedding_need_no_network():
    Embedder().embed(["A film."], batch_size=1)
