"""The order of prompts: a function of seed and step."""

from itertools import islice

import pytest

from fastrlhf.data.order import PromptOrder


def batches(count, **options):
    """The first batches of an order of ten rows, three a batch."""
    return list(islice(PromptOrder(**{"size": 10, "batch_size": 3, "seed": 1, **options}), count))


def test_an_epoch_sees_each_row_at_most_once_and_drops_the_remainder():
    first, second = batches(6)[:3], batches(6)[3:]
    for epoch in (first, second):
        rows = [row for batch in epoch for row in batch]
        assert len(rows) == len(set(rows)) == 9
        assert set(rows) < set(range(10))
    assert first != second


def test_the_same_seed_gives_the_same_order():
    assert batches(9) == batches(9)
    assert batches(9) != batches(9, seed=2)


@pytest.mark.parametrize("done", [0, 1, 3, 4, 7])
def test_a_resumed_order_goes_on(done):
    assert batches(5, first_batch=done) == batches(done + 5)[done:]


def test_ranks_share_each_batch():
    whole = batches(7, batch_size=4)
    shares = [batches(7, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_a_batch_as_large_as_the_dataset():
    for batch in batches(3, batch_size=10):
        assert sorted(batch) == list(range(10))


def test_one_row():
    assert batches(3, size=1, batch_size=1) == [[0]] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "train_dataset is empty"),
        ({"size": 2}, "2 rows, fewer than one batch of 3"),
        ({"world_size": 2}, "a batch of 3 is not divisible by 2 ranks"),
    ],
)
def test_what_cannot_be_ordered_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        batches(1, **options)
