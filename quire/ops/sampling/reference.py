"""`argmax`, `sample` and `rank_tokens` in numpy (argmax: in torch on other devices): the definition of correct."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.ops.registry import register
from quire.ops.sampling import logits as filters
from quire.ops.sampling.edits import RowEdits, apply_edits
from quire.ops.sampling.logits import Row
from quire.ops.sampling.race import race
from quire.ops.sampling.random import BLOCK, seed_key

ROWS_PER_RACE = 32
"""Rows drawn together: enough to spread the cost of a call, few enough for their scores to stay in cache."""

NO_TOKEN = -1


@register("argmax", "reference")
def argmax(logits: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `ops.argmax`."""
    picked = logits.detach() if rows is None else logits.detach()[rows.to(logits.device)]
    if logits.device.type == "cpu":  # several times faster than torch's, which also has no rule for ties
        values = picked.float().numpy()
        token_ids = torch.from_numpy(values.argmax(axis=1))
        return token_ids, torch.from_numpy(values[np.arange(len(values)), token_ids.numpy()])
    token_ids = picked.argmax(dim=-1)
    best = picked.gather(1, token_ids[:, None])[:, 0]
    return token_ids.cpu(), best.float().cpu()


@register("sample", "reference")
def sample(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    typical_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    edits: Sequence[RowEdits | None] | None = None,
    processed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `ops.sample`."""
    source, vocab = host_array(logits), logits.shape[1]
    token_ids = torch.full((len(rows),), NO_TOKEN, dtype=torch.int64)
    best = torch.from_numpy(source[rows.numpy()].max(axis=1)) if len(rows) else torch.empty(0)
    scores = np.full((ROWS_PER_RACE, -(-vocab // BLOCK) * BLOCK), -np.inf, dtype=np.float32)
    columns = [column.tolist() for column in (temperature, min_p, typical_p, top_k, top_p)]
    sound = torch.isfinite(best).nonzero()[:, 0].tolist()
    for start in range(0, len(sound), ROWS_PER_RACE):
        racing: list[int] = []
        for i in sound[start : start + ROWS_PER_RACE]:
            row = scores[len(racing)][:vocab]
            row[:] = source[int(rows[i])]
            own = edits[i] if edits is not None else None
            if own is not None and not np.isfinite(apply_edits(row, own).max()):
                continue
            if columns[0][i] > 0:
                heat_and_filter(row, *(column[i] for column in columns))
                racing.append(i)
            else:
                token_ids[i] = int(row.argmax())
            if processed is not None:
                processed[i] = torch.from_numpy(row)
        if racing:
            key = seed_key([int(seeds[i]) for i in racing])
            drawn = race(scores[: len(racing)], key, positions[racing].numpy().astype(np.uint64))
            token_ids[racing] = torch.from_numpy(drawn)
    return token_ids, best


def heat_and_filter(
    row: Row, temperature: float, min_p: float, typical_p: float, top_k: int, top_p: float
) -> Row:
    """Temperature, then min_p, typical_p, top_k and top_p, in place: dropped tokens become -inf."""
    filters.apply_temperature(row, temperature)
    kept = filters.keep_likely(row, min_p=min_p, typical_p=typical_p, top_k=top_k, top_p=top_p)
    return row if kept is None else filters.apply_allowed_ids(row, kept)


@register("rank_tokens", "reference")
def rank_tokens(
    logits: Tensor, rows: Tensor, token_ids: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.rank_tokens`."""
    source = host_array(logits)
    top_ids = torch.full((len(rows), num_top), NO_TOKEN, dtype=torch.int64)
    ranks = torch.empty(len(rows), dtype=torch.int64)
    log_sum_exp = torch.empty(len(rows), dtype=torch.float64)
    for i, (row_id, token_id) in enumerate(zip(rows.tolist(), token_ids.tolist(), strict=True)):
        row = source[row_id]
        top = filters.top_ids(row, num_top) if num_top else np.empty(0, dtype=np.int64)
        top_ids[i, : len(top)] = torch.from_numpy(top)
        ranks[i] = rank_of(row, token_id)
        peak = row.max()
        log_sum_exp[i] = float(peak) + float(np.log(np.exp(row - peak).sum(dtype=np.float64)))
    return top_ids, ranks, log_sum_exp


def rank_of(row: Row, token_id: int) -> int:
    """Place of the token in the order of the row (value falling, id rising), from 1."""
    value = row[token_id]
    return int(np.count_nonzero(row > value) + np.count_nonzero(row[:token_id] == value)) + 1


def host_array(logits: Tensor) -> NDArray[np.float32]:
    """logits as float32 in host memory; shares memory where they already are."""
    return logits.detach().float().cpu().numpy()
