"""Pairs of texts among live requests: the rows of a step that belong to a second text, and what stands for their positions."""

from __future__ import annotations

from torch import Tensor, nn

from quire.batch import NewRequest, ScheduledBatch
from quire.ops.capture import RowRun


class SecondTexts:
    """Knows where second texts begin; empty for models that do not tell them from first ones."""

    def __init__(self, model: nn.Module) -> None:
        self._rows: Tensor | None = getattr(model, "second_text", None)
        self._starts: dict[str, int] = {}

    def add(self, request: NewRequest) -> str | None:
        """Take in a request; what is wrong with its pair, or None."""
        start = None if request.params.pooling is None else request.params.pooling.second_text
        if start is None:
            return None
        if self._rows is None:
            return "this model does not tell two texts apart"
        if not 0 <= start <= len(request.token_ids):
            return f"second_text must be in [0, {len(request.token_ids)}], got {start}"
        self._starts[request.request_id] = start
        return None

    def remove(self, request_id: str) -> None:
        """Forget a request, known or not."""
        self._starts.pop(request_id, None)

    def replaced_rows(self, batch: ScheduledBatch) -> list[RowRun]:
        """The rows of a step that belong to second texts, with the vectors of their positions."""
        if not self._starts or self._rows is None:
            return []
        runs: list[RowRun] = []
        row = 0
        for request in batch.requests:
            first, end = request.num_computed_tokens, request.num_computed_tokens + request.num_tokens
            low = max(first, self._starts.get(request.request_id, end))
            if low < end:
                runs.append(RowRun(row + low - first, self._rows[low:end]))
            row += request.num_tokens
        return runs
