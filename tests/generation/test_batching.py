"""A row's tokens and log-probabilities do not depend on the rows around it, the cache, or who shares its prompt."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.generation import cache as paged
from fastrlhf.generation import engine as engines
from fastrlhf.generation.batches import generate
from fastrlhf.generation.engine import Engine
from fastrlhf.generation.request import Request
from fastrlhf.generation.settings import Settings
from fastrlhf.kernels import using
from fastrlhf.models.describe import describe
from tests.support.memory import allocations
from tests.support.toy import EOS, PAD, WORDS, toy_model

LENGTHS = (1, 20, 3, 40, 2, 17, 16, 33, 1)


def requests(max_new_tokens=8, **settings):
    """Prompts around the edges of a block, of which some end early."""
    random = torch.Generator().manual_seed(5)
    drawn = [tuple(torch.randint(0, WORDS, (length,), generator=random).tolist()) for length in LENGTHS]
    of_all = Settings(max_new_tokens, stop_token_ids=(EOS, 3), seed=7, **settings)
    return [Request(row, prompt, row, of_all) for row, prompt in enumerate(drawn)]


def finished(given, model=None, **options):
    """What an engine makes of the requests: tokens, log-probabilities and entropies by row id."""
    engine = Engine(describe(model or toy_model()), given, **{"max_rows": len(given), **options})
    for _ in engine.run():
        pass
    assert engine.cache is None
    return {request.row_id: (request.tokens, request.logprobs, request.entropy) for request in given}


@pytest.fixture(scope="module")
def alone():
    """Each request by itself."""
    found = {}
    for request in requests():
        found |= finished([request])
    lengths = {len(tokens) for tokens, *_ in found.values()}
    assert len(lengths) > 2 and max(lengths) == 8  # some end early, some do not
    return found


@pytest.mark.parametrize("max_rows", [1, 2, 4, 9])
def test_the_same_bits_in_any_batch(alone, max_rows):
    assert finished(requests(), max_rows=max_rows) == alone


def test_the_same_bits_in_any_order(alone):
    given = requests()
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(1)).tolist()
    assert finished([given[row] for row in order], max_rows=3) == alone


def test_a_finished_row_makes_room_at_once_and_the_batch_shrinks(alone, monkeypatch):
    sizes = []
    begin_step = Engine._begin_step

    def watched(self):
        sizes.append(len(self._active))
        begin_step(self)

    monkeypatch.setattr(Engine, "_begin_step", watched)
    finished(requests(), max_rows=3)
    lengths = [len(tokens) for tokens, *_ in alone.values()]
    assert sum(sizes) == sum(lengths)
    full = len(sizes) - sizes[::-1].index(3)
    assert sizes[:full] == [3] * full  # as long as any waited
    assert sizes[full:] == sorted(sizes[full:], reverse=True)


@pytest.mark.parametrize("largest", [1, 2])
def test_a_cache_that_does_not_fit_splits_the_batch(alone, largest):
    given = requests()
    blocks = paged.blocks_of(max(request.positions for request in given)) * largest + 1
    budget = blocks * paged.block_bytes(2, 2, 4, torch.float32)
    assert finished(given, cache_bytes=budget) == alone


def test_a_request_that_never_fits_is_an_error_that_names_the_sizes():
    budget = 3 * paged.block_bytes(2, 2, 4, torch.float32)
    with pytest.raises(
        ValueError, match=r"cache_bytes is 6144, but a sequence of 47 tokens .* takes 8192 bytes"
    ):
        finished(requests(), cache_bytes=budget)


def test_memory_that_does_not_suffice_splits_the_batch(alone, monkeypatch):
    given = requests()
    made = []

    def stingy(layers, blocks, *rest):
        made.append(blocks)
        if blocks > 8:
            raise torch.OutOfMemoryError("no memory")
        return paged.PagedCache(layers, blocks, *rest)

    monkeypatch.setattr(engines, "PagedCache", stingy)
    assert finished(given) == alone
    assert made[0] > 8 >= made[-1]


def test_memory_for_not_even_one_is_an_error(monkeypatch):
    def nothing(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(engines, "PagedCache", nothing)
    with pytest.raises(torch.OutOfMemoryError):
        finished(requests())


def samples(prompts, each):
    """`each` requests of every prompt, side by side."""
    of_all = Settings(6, stop_token_ids=(EOS,), seed=2)
    return [
        Request(number, prompt, number, of_all)
        for number, prompt in enumerate(prompt for prompt in prompts for _ in range(each))
    ]


@pytest.mark.parametrize("max_rows", [2, 5, 12])
def test_prompts_that_repeat_are_computed_once_and_shared(max_rows, monkeypatch):
    prompts = [requests()[row].prompt for row in (0, 1, 3, 5)]
    unshared = {}
    for request in samples(prompts, 3):
        unshared |= finished([request])
    filled = []
    prefill = engines.prefill

    def watched(decoder, cache, given):
        filled.extend(tokens for tokens, _ in given)
        prefill(decoder, cache, given)

    monkeypatch.setattr(engines, "prefill", watched)
    assert finished(samples(prompts, 3), max_rows=max_rows) == unshared
    assert sorted(filled) == sorted(prompt[:-1] for prompt in prompts if len(prompt) > 1)


def test_shared_prompts_in_a_small_cache():
    prompts = [requests()[row].prompt for row in (3, 7, 3, 1)]
    unshared = {}
    for request in samples(prompts, 2):
        unshared |= finished([request])
    budget = 5 * paged.block_bytes(2, 2, 4, torch.float32)
    assert finished(samples(prompts, 2), cache_bytes=budget) == unshared


def test_long_prompts_and_short_ones_in_one_batch():
    model = toy_model(max_position_embeddings=512)
    random = torch.Generator().manual_seed(5)
    of_all = Settings(5, seed=7)
    given = [
        Request(row, tuple(torch.randint(0, WORDS, (length,), generator=random).tolist()), row, of_all)
        for row, length in enumerate((200, 3, 129, 128, 400))
    ]
    found = {}
    for request in given:
        found |= finished([Request(request.index, request.prompt, request.row_id, of_all)], model)
    assert finished(given, model, max_rows=4) == found


def test_on_the_reference_kernels_too(alone):
    with using("reference"):
        found = finished(requests(), max_rows=3)
    assert {row: tokens for row, (tokens, *_) in found.items()} == {row: of[0] for row, of in alone.items()}


def test_a_step_allocates_nothing():
    engine = Engine(describe(toy_model()), requests(repetition_penalty=1.3), max_rows=4)
    assert engine._admit() == 4
    engine._step(4)
    assert allocations(lambda: engine._step(4)).largest == 0
    assert allocations(lambda: engine._step(3)).largest == 0


def test_the_cache_is_gone_before_an_update():
    engine = Engine(describe(toy_model()), requests(), max_rows=4)
    events = engine.run()
    next(events)
    assert engine.cache.nbytes > 0
    events.close()
    assert engine.cache is None


@pytest.mark.parametrize("behind", [1, 2, 5])
@pytest.mark.parametrize("least", [0, 5])
def test_a_host_that_stays_behind(behind, least):
    """As on a GPU: the next steps have begun when the host looks, and what a row draws after its end is thrown away."""
    expected, given = requests(min_new_tokens=least), requests(min_new_tokens=least)
    finished(expected)
    assert any(len(each.tokens) < 8 for each in expected)
    with using("reference"):
        engine = Engine(describe(toy_model()), given, max_rows=4)
        engine.stay_behind(behind)
        for _ in engine.run():
            pass
    assert [each.tokens for each in given] == [each.tokens for each in expected]


def test_padded_batches():
    ids = torch.tensor([[PAD, PAD, 4], [7, 8, 9]])
    found = generate(toy_model(), ids, ids != PAD, max_new_tokens=4, pad_token_id=PAD, batch_size=1, seed=3)
    both = generate(toy_model(), ids, ids != PAD, max_new_tokens=4, pad_token_id=PAD, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(found, both, strict=True))
