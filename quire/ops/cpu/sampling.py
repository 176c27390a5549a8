"""`argmax`, `sample` and `rank_tokens` on the C++ extension: float32 logits in host memory; all else goes to the reference."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quire.ops import cpu, registry
from quire.ops.cpu.extension import address
from quire.ops.sampling import reference
from quire.ops.sampling.edits import WORD_BITS, RowEdits

_extension: Any = cpu.load()[0]
_LEVEL: int = _extension.LEVEL_NAMES.index(cpu.level())
_PART: int = _extension.ARGMAX_PART


def _on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def argmax_at_level(logits: Tensor, rows: Tensor | None, level: int) -> tuple[Tensor, Tensor]:
    """`ops.argmax` at one instruction-set level (an index of `LEVEL_NAMES`); the levels agree bit for bit."""
    logits, vocab = logits.contiguous(), logits.shape[1]
    num_rows, num_parts = len(logits if rows is None else rows), -(-vocab // _PART)
    token_ids = torch.empty(num_rows * (1 + num_parts), dtype=torch.int64)
    best = torch.empty(num_rows * (1 + num_parts))
    _extension.argmax(
        token_ids.data_ptr(),
        best.data_ptr(),
        token_ids.data_ptr() + 8 * num_rows,
        best.data_ptr() + 4 * num_rows,
        logits.data_ptr(),
        0 if rows is None else rows.data_ptr(),
        num_rows,
        vocab,
        level,
    ).run()
    return token_ids[:num_rows], best[:num_rows]


def sample_at_level(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    typical_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    edits: Sequence[RowEdits | None] | None,
    processed: Tensor | None,
    level: int,
) -> tuple[Tensor, Tensor]:
    """`ops.sample` at one instruction-set level."""
    logits = logits.contiguous()
    token_ids, best = torch.empty(len(rows), dtype=torch.int64), torch.empty(len(rows))
    packed_edits = b"" if edits is None else b"".join(map(_pack_edits, edits))
    _extension.sample(
        token_ids.data_ptr(),
        best.data_ptr(),
        address(processed),
        logits.data_ptr(),
        rows.data_ptr(),
        temperature.data_ptr(),
        min_p.data_ptr(),
        typical_p.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        seeds.data_ptr(),
        positions.data_ptr(),
        packed_edits,
        len(rows),
        logits.shape[1],
        level,
    ).run()
    return token_ids, best


_EDITS = struct.Struct("@9q3d")
"""RowEdits of csrc/cpu/sampling.h."""
_NO_EDITS = _EDITS.pack(*[0] * 9, 1.0, 0.0, 0.0)


def _pack_edits(edits: RowEdits | None) -> bytes:
    if edits is None:
        return _NO_EDITS
    return _EDITS.pack(
        address(edits.allowed),
        address(edits.banned_ids),
        0 if edits.banned_ids is None else len(edits.banned_ids),
        address(edits.bias_ids),
        address(edits.bias_values),
        0 if edits.bias_ids is None else len(edits.bias_ids),
        address(edits.seen_ids),
        address(edits.seen_counts),
        edits.num_seen,
        edits.repetition_penalty,
        edits.frequency_penalty,
        edits.presence_penalty,
    )


def rank_tokens_at_level(
    logits: Tensor, rows: Tensor, token_ids: Tensor, num_top: int, level: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.rank_tokens` at one instruction-set level."""
    logits = logits.contiguous()
    top_ids = torch.empty(len(rows), num_top, dtype=torch.int64)
    ranks = torch.empty(len(rows), dtype=torch.int64)
    log_sum_exp = torch.empty(len(rows), dtype=torch.float64)
    _extension.rank_tokens(
        top_ids.data_ptr(),
        ranks.data_ptr(),
        log_sum_exp.data_ptr(),
        logits.data_ptr(),
        rows.data_ptr(),
        token_ids.data_ptr(),
        len(rows),
        logits.shape[1],
        num_top,
        level,
    ).run()
    return top_ids, ranks, log_sum_exp


def _check(logits: Tensor, rows: Tensor | None, **columns: tuple[Tensor, torch.dtype]) -> None:
    """Raises ValueError where a kernel would read memory that is not there, or read it wrongly."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [rows, vocab] with vocab > 0, got {list(logits.shape)}")
    if rows is None:
        return
    for name, (column, dtype) in {"rows": (rows, torch.int64), **columns}.items():
        if column.dtype != dtype or column.shape != rows.shape or not column.is_contiguous():
            raise ValueError(
                f"{name} must be a dense {dtype} [{len(rows)}], got {column.dtype} {list(column.shape)}"
            )
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(logits)):
        raise ValueError(f"rows must be in [0, {len(logits)}), got {rows.tolist()}")


@registry.register("argmax", "cpu", supports=_on_cpu)
def argmax(logits: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `ops.argmax`."""
    if logits.dtype != torch.float32:
        return reference.argmax(logits, rows)
    _check(logits, rows)
    return argmax_at_level(logits, rows, _LEVEL)


def _check_edits(edits: Sequence[RowEdits | None], num_rows: int, vocab: int) -> None:
    """As `_check`. That the ids are within the vocabulary is checked where it is cheap: in the extension."""
    if len(edits) != num_rows:
        raise ValueError(f"edits must be {num_rows}, one for each row, got {len(edits)}")
    for own in edits:
        if own is None:
            continue
        _check_list("allowed", own.allowed, torch.int32, -(-vocab // WORD_BITS))
        _check_list("banned_ids", own.banned_ids, torch.int64, 0)
        _check_list("bias_ids", own.bias_ids, torch.int64, 0)
        _check_list("bias_values", own.bias_values, torch.float32, 0 if own.bias_ids is None else len(own.bias_ids))
        _check_list("seen_ids", own.seen_ids, torch.int64, own.num_seen)
        _check_list("seen_counts", own.seen_counts, torch.float32, own.num_seen)


def _check_list(name: str, numbers: Tensor | None, dtype: torch.dtype, at_least: int) -> None:
    if numbers is not None and (numbers.dtype != dtype or len(numbers) < at_least or not numbers.is_contiguous()):
        raise ValueError(
            f"{name} must be a dense {dtype} [{at_least}], got {numbers.dtype} {list(numbers.shape)}"
        )


@registry.register("sample", "cpu", supports=_on_cpu)
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
    _check(
        logits,
        rows,
        temperature=(temperature, torch.float64),
        min_p=(min_p, torch.float64),
        typical_p=(typical_p, torch.float64),
        top_k=(top_k, torch.int64),
        top_p=(top_p, torch.float64),
        seeds=(seeds, torch.int64),
        positions=(positions, torch.int64),
    )
    if edits is not None:
        _check_edits(edits, len(rows), logits.shape[1])
    if processed is not None and (
        processed.shape != (len(rows), logits.shape[1])
        or processed.dtype != torch.float32
        or not processed.is_contiguous()
    ):
        raise ValueError(
            f"processed must be a dense float32 [{len(rows)}, {logits.shape[1]}], got {list(processed.shape)}"
        )
    columns = temperature, min_p, typical_p, top_k, top_p, seeds, positions
    return sample_at_level(logits.float(), rows, *columns, edits, processed, _LEVEL)


@registry.register("rank_tokens", "cpu", supports=_on_cpu)
def rank_tokens(
    logits: Tensor, rows: Tensor, token_ids: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.rank_tokens`."""
    _check(logits, rows, token_ids=(token_ids, torch.int64))
    vocab = logits.shape[1]
    if len(rows) and not (int(token_ids.min()) >= 0 and int(token_ids.max()) < vocab):
        raise ValueError(f"token_ids must be in [0, {vocab}), got {token_ids.tolist()}")
    return rank_tokens_at_level(logits.float(), rows, token_ids, num_top, _LEVEL)
