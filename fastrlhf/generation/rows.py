"""The rows of the batch on the device: everything that changes from step to step lies in tensors that stay in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastrlhf.generation.cache import SPARE_BLOCK
from fastrlhf.generation.request import Request
from fastrlhf.generation.transfer import upload
from fastrlhf.kernels import dispatch


class Rows:
    """State of at most `max_rows` rows, the first of which are in the batch.

    Attributes:
        tokens: `[B]`, int64: each row's last token; a step replaces it by the next one.
        lengths: `[B]`, int32: positions that the cache holds of the row.
        block_table: `[B, max_blocks]`, int32.
        slots: `[B]`, int64: where the step writes.
        row_ids, seeds, steps, top_k `[B]`, int64; temperature, top_p, min_p, penalty `[B]`, float32: see
            `fastrlhf.kernels.sample`.
        seen, banned: `[B, V]`, bool, or None where no request needs them.
        logprobs, entropy: `[B]`, float32, of the tokens last sampled.
        group_offsets: `[B + 1, 2]`, int32: of each number of rows the bounds of a group that has them all.
    """

    def __init__(
        self, max_rows: int, max_blocks: int, vocabulary: int, device: torch.device, requests: list[Request]
    ):
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        # what a row is made of lies in few tensors, so that rows come, move and go in few copies
        self._whole = zeros(5, max_rows)
        self.tokens, self.row_ids, self.seeds, self.steps, self.top_k = self._whole
        self._words = zeros(5, max_rows, dtype=torch.float32)
        self.temperature, self.top_p, self.min_p, self.penalty, lengths = self._words
        self.lengths = lengths.view(torch.int32)
        self.block_table = zeros(max_rows, max_blocks, dtype=torch.int32).fill_(SPARE_BLOCK)
        self.slots = zeros(max_rows)
        self.logprobs, self.entropy = zeros(2, max_rows, dtype=torch.float32)
        self.group_offsets = zeros(max_rows + 1, 2, dtype=torch.int32)
        torch.arange(max_rows + 1, out=self.group_offsets[:, 1])
        self._last_position = max(request.positions for request in requests) - 1
        settings = [request.settings for request in requests]
        penalised = any(each.repetition_penalty != 1 for each in settings)
        held_back = any(each.min_new_tokens and each.stop_token_ids for each in settings)
        self.seen = zeros(max_rows, vocabulary, dtype=torch.bool) if penalised else None
        self.banned = zeros(max_rows, vocabulary, dtype=torch.bool) if held_back else None

    def place(self, first: int, requests: Sequence[tuple[Request, list[int]]]) -> None:
        """Put requests, their prefixes in the cache's blocks that are named, into rows from the `first` on."""
        rows, device = slice(first, first + len(requests)), self.tokens.device
        whole, words, lengths = [], [], []
        table = torch.full((len(requests), self.block_table.shape[1]), SPARE_BLOCK, dtype=torch.int32)
        for row, (request, blocks) in enumerate(requests):
            settings = request.settings
            seed = settings.seed - (2**64 if settings.seed >= 2**63 else 0)
            whole.append((request.prompt[-1], request.row_id, seed, 0, settings.top_k))
            words.append((settings.temperature, settings.top_p, settings.min_p, settings.repetition_penalty))
            lengths.append((len(request.prefix),))
            table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        of_lengths = torch.tensor(lengths, dtype=torch.int32).view(torch.float32)
        words = torch.cat([torch.tensor(words, dtype=torch.float32), of_lengths], dim=1)
        self._whole[:, rows] = upload(whole, torch.int64, device).T
        self._words[:, rows] = upload(words, torch.float32, device).T
        self.block_table[rows] = upload(table, torch.int32, device)
        for row, (request, _) in enumerate(requests, first):
            self._place_masks(row, request)

    def _place_masks(self, row: int, request: Request) -> None:
        settings, device = request.settings, self.tokens.device
        if self.seen is not None:
            self.seen[row].fill_(False).index_fill_(0, upload(request.prompt, torch.int64, device), True)
        if self.banned is not None:
            self.banned[row].fill_(False)
            if settings.min_new_tokens:
                self.banned[row].index_fill_(0, upload(settings.stop_token_ids, torch.int64, device), True)

    def move(self, source: int, target: int) -> None:
        """Let another row stand where one has ended."""
        for numbers in (self._whole, self._words):
            numbers[:, target] = numbers[:, source]
        for tensor in (self.block_table, self.seen, self.banned):
            if tensor is not None:
                tensor[target] = tensor[source]

    def clear(self, row: int) -> None:
        """Make a row one that stands for nothing: it writes into the spare block."""
        self.block_table[row].fill_(SPARE_BLOCK)
        self.lengths[row : row + 1].fill_(0)

    def allow_stops(self, row: int) -> None:
        """The row has as many tokens as it must, and may end."""
        if self.banned is not None:
            self.banned[row].fill_(False)

    def draw(self, logits: torch.Tensor) -> None:
        """Sample the first rows' next tokens, from logits `[count, V]`, by the operations' launchers; the rows are a
        position longer then."""
        count = len(logits)
        seen, banned = (None if tensor is None else tensor[:count] for tensor in (self.seen, self.banned))
        # seed, step, temperature, top-k, top-p, min-p and penalty of all rows, in whose place are those of each
        of_all = (0, 0, 1.0, 0, 1.0, 0.0, 1.0)
        settings = self.settings(count)
        drawn = dispatch.call("sample", logits, self.row_ids[:count], *of_all, seen, banned, settings)
        state = self.logprobs, self.entropy, self.tokens, self.steps, self.lengths
        dispatch.call("end_step", *(tensor[:count] for tensor in state), seen, *drawn, self._last_position)

    @property
    def drawn(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token, log-probability and entropy of each row, as they were last drawn."""
        return self.tokens, self.logprobs, self.entropy

    def settings(self, count: int) -> list[torch.Tensor]:
        """The settings of the first rows, in the order of the operation `sample`."""
        tensors = (self.seeds, self.steps, self.temperature, self.top_k, self.top_p, self.min_p, self.penalty)
        return [tensor[:count] for tensor in tensors]
