"""`argmax`, `sample` and `rank_tokens` on the C++ extension: float32 logits in host memory; all else goes to the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import cpu, registry
from quire.ops.sampling import reference

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
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    processed: Tensor | None,
    level: int,
) -> tuple[Tensor, Tensor]:
    """`ops.sample` at one instruction-set level."""
    logits = logits.contiguous()
    token_ids, best = torch.empty(len(rows), dtype=torch.int64), torch.empty(len(rows))
    _extension.sample(
        token_ids.data_ptr(),
        best.data_ptr(),
        0 if processed is None else processed.data_ptr(),
        logits.data_ptr(),
        rows.data_ptr(),
        temperature.data_ptr(),
        min_p.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        seeds.data_ptr(),
        positions.data_ptr(),
        len(rows),
        logits.shape[1],
        level,
    ).run()
    return token_ids, best


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


@registry.register("sample", "cpu", supports=_on_cpu)
def sample(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    processed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `ops.sample`."""
    _check(
        logits,
        rows,
        temperature=(temperature, torch.float64),
        min_p=(min_p, torch.float64),
        top_k=(top_k, torch.int64),
        top_p=(top_p, torch.float64),
        seeds=(seeds, torch.int64),
        positions=(positions, torch.int64),
    )
    if processed is not None and (
        processed.shape != (len(rows), logits.shape[1])
        or processed.dtype != torch.float32
        or not processed.is_contiguous()
    ):
        raise ValueError(
            f"processed must be a dense float32 [{len(rows)}, {logits.shape[1]}], got {list(processed.shape)}"
        )
    return sample_at_level(
        logits.float(), rows, temperature, min_p, top_k, top_p, seeds, positions, processed, _LEVEL
    )


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
