"""Each live request's tokens and blocks as rows of two tables, and a ScheduledBatch as slices of those."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from quire.batch import NewRequest, ScheduledBatch, ScheduledRequest
from quire.ops.capture import Step, StepTensors, Tables

Ints = NDArray[np.int32]


class RequestTable:
    """Row r of `tokens` and `blocks` belongs to one live request; rows are reused."""

    def __init__(self, num_rows: int, max_model_len: int, block_size: int) -> None:
        self.tokens = np.zeros((num_rows, max_model_len + 1), dtype=np.int32)
        self.blocks = np.zeros((num_rows, -(-max_model_len // block_size) + 1), dtype=np.int32)
        self.num_tokens = [0] * num_rows
        self.num_blocks = [0] * num_rows
        self.row_of: dict[str, int] = {}
        self._free = list(range(num_rows))[::-1]
        self._block_size = block_size
        self._tables = self._make_tables()

    def add(self, request: NewRequest) -> None:
        """Take a row for a request that the table does not have."""
        if not self._free:
            self._grow_rows()
        row = self._free.pop()
        self.row_of[request.request_id] = row
        self.num_blocks[row] = self.num_tokens[row] = 0
        self.append_tokens(row, request.token_ids)
        self._append_blocks(row, request.block_ids)

    def remove(self, request_id: str) -> None:
        """Give the row back; a request that is not here is passed over (it failed before)."""
        row = self.row_of.pop(request_id, None)
        if row is not None:
            self._free.append(row)

    def append_tokens(self, row: int, token_ids: list[int]) -> None:
        """The request of this row grew by `token_ids`."""
        self._write_tokens(row, token_ids)
        self.num_tokens[row] += len(token_ids)

    def append_token(self, row: int, token_id: int) -> None:
        """The request of this row grew by one token: what most steps do for each request."""
        place = self.num_tokens[row]
        if place == self.tokens.shape[1]:
            self.append_tokens(row, [token_id])
            return
        self.tokens[row, place] = token_id
        self.num_tokens[row] = place + 1

    def make_step(self, batch: ScheduledBatch) -> Step:
        """Bring block tables and draft tokens up to date, and say what the step computes."""
        rows, first, counts = [], [], []
        row_of = self.row_of
        for request in batch.requests:
            row = row_of[request.request_id]
            if request.new_block_ids or request.replaced_blocks:
                self._update_blocks(row, request)
            if request.draft_token_ids:
                self._write_tokens(row, request.draft_token_ids)  # behind the known ones, and not counted as known
            rows.append(row)
            first.append(request.num_computed_tokens)
            counts.append(request.num_tokens)
        return Step(self._tables, rows, first, counts)

    def _update_blocks(self, row: int, request: ScheduledRequest) -> None:
        self._append_blocks(row, request.new_block_ids)
        for index, block_id in request.replaced_blocks:
            self.blocks[row, index] = block_id

    def _append_blocks(self, row: int, block_ids: list[int]) -> None:
        start = self.num_blocks[row]
        end = start + len(block_ids)
        if end > self.blocks.shape[1]:
            self.blocks = _widened(self.blocks, end)
            self._tables = self._make_tables()
        self.blocks[row, start:end] = block_ids
        self.num_blocks[row] = end

    def _write_tokens(self, row: int, token_ids: list[int]) -> None:
        start = self.num_tokens[row]
        end = start + len(token_ids)
        if end > self.tokens.shape[1]:
            self.tokens = _widened(self.tokens, end)
            self._tables = self._make_tables()
        self.tokens[row, start:end] = token_ids

    def _grow_rows(self) -> None:
        old = len(self.num_tokens)
        self.tokens = np.concatenate([self.tokens, np.zeros_like(self.tokens)])
        self.blocks = np.concatenate([self.blocks, np.zeros_like(self.blocks)])
        self.num_tokens += [0] * old
        self.num_blocks += [0] * old
        self._free += list(range(old, 2 * old))[::-1]
        self._tables = self._make_tables()

    def _make_tables(self) -> Tables:
        return Tables(torch.from_numpy(self.tokens), torch.from_numpy(self.blocks), self._block_size)


def make_tensors(step: Step, device: torch.device) -> StepTensors:
    """The tensors of one model call: one gather over both tables, whatever mix of chunks and single tokens it is."""
    tables, block_size = step.tables, step.tables.block_size
    rows, first, counts = (np.array(numbers, dtype=np.int64) for numbers in (step.rows, step.first, step.counts))
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    positions = np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)
    token_rows = np.repeat(rows, counts)
    lengths = first + counts
    num_columns = -(-int(lengths.max(initial=1)) // block_size)
    blocks = tables.blocks.numpy()
    slots = blocks[token_rows, positions // block_size].astype(np.int64) * block_size + positions % block_size

    def tensor(array: NDArray[np.integer]) -> torch.Tensor:
        host = torch.from_numpy(array)
        return host if device.type == "cpu" else host.to(device, non_blocking=True)

    return StepTensors(
        token_ids=tensor(tables.tokens.numpy()[token_rows, positions].astype(np.int64)),
        positions=tensor(positions),
        slot_mapping=tensor(slots),
        block_tables=tensor(blocks[rows, :num_columns]),
        query_start=tensor(starts.astype(np.int32)),
        seq_lens=tensor(lengths.astype(np.int32)),
        replaced=step.replaced,
    )


def _widened(table: Ints, columns: int) -> Ints:
    """The table with at least `columns` columns."""
    wide = np.zeros((table.shape[0], max(columns, 2 * table.shape[1])), dtype=table.dtype)
    wide[:, : table.shape[1]] = table
    return wide
