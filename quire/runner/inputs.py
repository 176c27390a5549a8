"""Each live request's tokens and blocks as rows of two tables, and a ScheduledBatch as the tensors of one model call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quire.batch import NewRequest, ScheduledBatch, ScheduledRequest
from quire.ops.capture import StepTensors

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class ModelInputs(StepTensors):
    """One step of T tokens and R requests, in the order of the batch."""

    starts: Sequence[int]
    """query_start on the host."""
    table_rows: NDArray[np.int64]
    """[R]: each request's row of the `RequestTable`."""


class _OneToken:
    """Tensors of a step of one token, and the arrays that are their memory."""

    def __init__(self) -> None:
        self.numbers = np.zeros((3, 1), dtype=np.int64)
        self.length = np.zeros(1, dtype=np.int32)
        self.row = np.zeros(1, dtype=np.int64)
        self.tensors = [torch.from_numpy(numbers) for numbers in self.numbers]
        """Token id, position, slot."""
        self.seq_lens = torch.from_numpy(self.length)
        self.query_start = torch.arange(2, dtype=torch.int32)


class RequestTable:
    """Row r of `tokens` and `blocks` belongs to one live request; rows are reused."""

    def __init__(self, num_rows: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.tokens = np.zeros((num_rows, max_model_len + 1), dtype=np.int32)
        self.blocks = np.zeros((num_rows, -(-max_model_len // block_size) + 1), dtype=np.int32)
        self.num_tokens = np.zeros(num_rows, dtype=np.int64)
        self.num_blocks = np.zeros(num_rows, dtype=np.int64)
        self.row_of: dict[str, int] = {}
        self._free = list(range(num_rows))[::-1]
        self._one_token = _OneToken()

    def add(self, request: NewRequest) -> None:
        """Take a row for a request that the table does not have."""
        if not self._free:
            self._grow_rows()
        row = self._free.pop()
        self.row_of[request.request_id] = row
        self.num_blocks[row] = self.num_tokens[row] = 0
        self.append_tokens(request.request_id, request.token_ids)
        self.append_blocks(row, request.block_ids)

    def remove(self, request_id: str) -> None:
        """Give the row back; a request that is not here is passed over (it failed before)."""
        row = self.row_of.pop(request_id, None)
        if row is not None:
            self._free.append(row)

    def append_tokens(self, request_id: str, token_ids: list[int]) -> None:
        """The request grew by `token_ids`."""
        self.append_tokens_to(self.row_of[request_id], token_ids)

    def append_tokens_to(self, row: int, token_ids: list[int]) -> None:
        """The request of this row grew by `token_ids`."""
        start = int(self.num_tokens[row])
        end = start + len(token_ids)
        if end > self.tokens.shape[1]:
            self.tokens = _widened(self.tokens, end)
        self.tokens[row, start:end] = token_ids
        self.num_tokens[row] = end

    def append_blocks(self, row: int, block_ids: list[int]) -> None:
        """The request's block table grew by `block_ids`."""
        start = int(self.num_blocks[row])
        end = start + len(block_ids)
        if end > self.blocks.shape[1]:
            self.blocks = _widened(self.blocks, end)
        self.blocks[row, start:end] = block_ids
        self.num_blocks[row] = end

    def update_blocks(self, request: ScheduledRequest) -> None:
        """Apply a step's changes to one block table."""
        row = self.row_of[request.request_id]
        if request.new_block_ids:
            self.append_blocks(row, request.new_block_ids)
        for index, block_id in request.replaced_blocks:
            self.blocks[row, index] = block_id

    def write_drafts(self, request: ScheduledRequest) -> None:
        """Put draft tokens behind the known ones, without counting them as known."""
        row = self.row_of[request.request_id]
        start = int(self.num_tokens[row])
        end = start + len(request.draft_token_ids)
        if end > self.tokens.shape[1]:
            self.tokens = _widened(self.tokens, end)
        self.tokens[row, start:end] = request.draft_token_ids

    def append_token_each(self, rows: NDArray[np.int64], token_ids: list[int]) -> None:
        """Each request of `rows` grew by one token."""
        if len(rows) == 1:  # what costs a batch of one is the number of numpy calls
            self.append_tokens_to(int(rows[0]), token_ids)
            return
        ends = self.num_tokens[rows]
        if len(rows) and int(ends.max()) >= self.tokens.shape[1]:
            self.tokens = _widened(self.tokens, int(ends.max()) + 1)
        self.tokens[rows, ends] = token_ids
        self.num_tokens[rows] = ends + 1

    def make_inputs(self, batch: ScheduledBatch, device: torch.device) -> ModelInputs:
        """The step's tensors: one gather over both tables, whatever mix of chunks and single tokens it is."""
        requests = batch.requests
        for request in requests:
            if request.new_block_ids or request.replaced_blocks:
                self.update_blocks(request)
            if request.draft_token_ids:
                self.write_drafts(request)
        row_of = self.row_of
        if len(requests) == 1 and requests[0].num_tokens == 1 and device.type == "cpu":
            return self._input_of_one_token(row_of[requests[0].request_id], requests[0].num_computed_tokens)
        rows = np.array([row_of[request.request_id] for request in requests], dtype=np.int64)
        computed = np.array([request.num_computed_tokens for request in requests], dtype=np.int64)
        num_tokens = [request.num_tokens for request in requests]
        if max(num_tokens, default=0) == 1:
            return self._inputs_of_single_tokens(rows, computed, device)
        counts = np.array(num_tokens, dtype=np.int64)
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=starts[1:])
        positions = np.arange(starts[-1]) + np.repeat(computed - starts[:-1], counts)
        token_rows = np.repeat(rows, counts)
        columns = (rows, token_rows, positions, computed + counts, starts.astype(np.int32), starts.tolist())
        return self._gather(*columns, device)

    def _input_of_one_token(self, row: int, position: int) -> ModelInputs:
        """A batch of one decoding request: the same as `_gather`, written into tensors that every such step uses again."""
        one, block_size = self._one_token, self.block_size
        one.numbers[0, 0] = self.tokens[row, position]
        one.numbers[1, 0] = position
        one.numbers[2, 0] = int(self.blocks[row, position // block_size]) * block_size + position % block_size
        one.length[0] = position + 1
        one.row[0] = row
        num_columns = position // block_size + 1
        return ModelInputs(
            token_ids=one.tensors[0],
            positions=one.tensors[1],
            slot_mapping=one.tensors[2],
            block_tables=torch.from_numpy(self.blocks[row : row + 1, :num_columns]),
            query_start=one.query_start,
            seq_lens=one.seq_lens,
            starts=range(2),
            table_rows=one.row,
        )

    def _inputs_of_single_tokens(
        self, rows: NDArray[np.int64], computed: NDArray[np.int64], device: torch.device
    ) -> ModelInputs:
        """Most steps: every request computes one token. The same as above, in half the time."""
        starts = range(len(rows) + 1)
        return self._gather(rows, rows, computed, computed + 1, np.arange(len(rows) + 1, dtype=np.int32), starts, device)

    def _gather(
        self,
        rows: NDArray[np.int64],
        token_rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        seq_lens: NDArray[np.int64],
        query_start: NDArray[np.int32],
        starts: Sequence[int],
        device: torch.device,
    ) -> ModelInputs:
        block_size = self.block_size
        num_columns = -(-int(seq_lens.max(initial=1)) // block_size)
        blocks = self.blocks[token_rows, positions // block_size].astype(np.int64)
        slots = blocks * block_size + positions % block_size

        def tensor(array: NDArray[np.integer]) -> torch.Tensor:
            host = torch.from_numpy(array)
            return host if device.type == "cpu" else host.to(device, non_blocking=True)

        return ModelInputs(
            token_ids=tensor(self.tokens[token_rows, positions].astype(np.int64)),
            positions=tensor(positions),
            slot_mapping=tensor(slots),
            block_tables=tensor(self.blocks[rows, :num_columns]),
            query_start=tensor(query_start),
            seq_lens=tensor(seq_lens.astype(np.int32)),
            starts=starts,
            table_rows=rows,
        )

    def _grow_rows(self) -> None:
        old = len(self.num_tokens)
        self.tokens = np.concatenate([self.tokens, np.zeros_like(self.tokens)])
        self.blocks = np.concatenate([self.blocks, np.zeros_like(self.blocks)])
        self.num_tokens = np.concatenate([self.num_tokens, np.zeros_like(self.num_tokens)])
        self.num_blocks = np.concatenate([self.num_blocks, np.zeros_like(self.num_blocks)])
        self._free += list(range(old, 2 * old))[::-1]


def _widened(table: Ints, columns: int) -> Ints:
    """The table with at least `columns` columns."""
    wide = np.zeros((table.shape[0], max(columns, 2 * table.shape[1])), dtype=table.dtype)
    wide[:, : table.shape[1]] = table
    return wide
