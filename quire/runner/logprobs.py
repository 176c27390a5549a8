"""TokenLogprobs of rows of logits: values, order and ranks. Order is by falling logit, lowest id first among equals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from quire import ops
from quire.batch import TokenLogprobs
from quire.errors import ConfigError

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
"""raw: the model's logits; processed: after edits, and for random sampling after temperature and filters."""

ALL_TOKENS = -1


def check_logprobs_mode(mode: str) -> LogprobsMode:
    """The mode itself; raises ConfigError for anything but a LogprobsMode."""
    if mode not in get_args(LogprobsMode):
        raise ConfigError(f"logprobs_mode must be one of {', '.join(get_args(LogprobsMode))}, got {mode!r}")
    return cast(LogprobsMode, mode)


def gather_logprobs(
    logits: Tensor,
    rows: Sequence[int],
    token_ids: Sequence[int],
    num_logprobs: Sequence[int],
    mode: LogprobsMode,
) -> list[TokenLogprobs]:
    """For row rows[i] of logits [., vocab] in host memory: token_ids[i] first, then the num_logprobs[i] likeliest tokens (-1:
    all), which may have it again.

    Values are log_softmax of the row in float32, or the row itself in the logits modes. Tokens at -inf are not listed, unless
    chosen.
    """
    vocab = logits.shape[1]
    counts = [vocab if count == ALL_TOKENS else min(count, vocab) for count in num_logprobs]
    row_index, chosen = torch.tensor(rows, dtype=torch.int64), torch.tensor(token_ids, dtype=torch.int64)
    top_ids, ranks, log_sum_exp = ops.rank_tokens(logits, row_index, chosen, max(counts, default=0))
    ids = torch.cat([chosen[:, None], top_ids], dim=1)
    values = logits[row_index[:, None], ids.clamp(min=0)].float()
    if not mode.endswith("logits"):
        values = (values.double() - log_sum_exp[:, None]).float()
    num_listed = (top_ids >= 0).sum(dim=1)
    gathered = []
    for i, (count, listed, rank) in enumerate(zip(counts, num_listed.tolist(), ranks.tolist(), strict=True)):
        num_top = min(count, listed)
        gathered.append(
            TokenLogprobs(
                ids[i, : num_top + 1].tolist(),
                values[i, : num_top + 1].tolist(),
                [rank, *range(1, num_top + 1)],
            )
        )
    return gathered


def prompt_logprobs(
    logits: Tensor, target_ids: Sequence[int], num_logprobs: int, mode: LogprobsMode = "raw_logprobs"
) -> list[TokenLogprobs]:
    """For each row of logits [positions, vocab], the TokenLogprobs of target_ids[row], the token that did come next."""
    num_rows = len(target_ids)
    return gather_logprobs(host_rows(logits), range(num_rows), target_ids, [num_logprobs] * num_rows, mode)


def host_rows(logits: Tensor) -> Tensor:
    """logits [rows, vocab] as float32 in host memory; shares memory where they already are."""
    return logits.detach().to("cpu", torch.float32)
