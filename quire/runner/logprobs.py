"""TokenLogprobs of rows of logits: values, order and ranks. Order is by falling logit, lowest id first among equals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from quire.batch import TokenLogprobs
from quire.errors import ConfigError
from quire.runner.logits import Row, top_ids

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
"""raw: the model's logits; processed: after edits, and for random sampling after temperature and filters."""

ALL_TOKENS = -1


def check_logprobs_mode(mode: str) -> LogprobsMode:
    """The mode itself; raises ConfigError for anything but a LogprobsMode."""
    if mode not in get_args(LogprobsMode):
        raise ConfigError(f"logprobs_mode must be one of {', '.join(get_args(LogprobsMode))}, got {mode!r}")
    return cast(LogprobsMode, mode)


def gather_logprobs(row: Row, token_id: int, num_logprobs: int, mode: LogprobsMode) -> TokenLogprobs:
    """`token_id` first, then the num_logprobs likeliest tokens (-1: all), which may have it again.

    Values are float32 log_softmax of the row, or the row itself in the logits modes. Tokens at -inf are not listed, unless
    chosen.
    """
    num_top = len(row) if num_logprobs == ALL_TOKENS else num_logprobs
    likeliest = top_ids(row, num_top).tolist() if num_top else []
    ids = [token_id, *likeliest]
    values = row if mode.endswith("logits") else log_softmax(row)
    return TokenLogprobs(ids, values[ids].tolist(), [rank_of(row, token_id), *range(1, len(likeliest) + 1)])


def prompt_logprobs(
    logits: torch.Tensor, target_ids: Sequence[int], num_logprobs: int, mode: LogprobsMode = "raw_logprobs"
) -> list[TokenLogprobs]:
    """For each row of logits [positions, vocab], the TokenLogprobs of target_ids[row], the token that did come next."""
    rows = host_rows(logits)
    return [
        gather_logprobs(row, target, num_logprobs, mode) for row, target in zip(rows, target_ids, strict=True)
    ]


def rank_of(row: Row, token_id: int) -> int:
    """Place of the token in the order of the row, from 1."""
    value = row[token_id]
    return int(np.count_nonzero(row > value) + np.count_nonzero(row[:token_id] == value)) + 1


def log_softmax(row: Row) -> Row:
    """float32 log_softmax [vocab] of one row."""
    return torch.log_softmax(torch.from_numpy(row), dim=-1).numpy()


def host_rows(logits: torch.Tensor) -> NDArray[np.float32]:
    """logits [rows, vocab] as float32 in host memory; shares memory where they already are."""
    return logits.detach().float().cpu().numpy()
