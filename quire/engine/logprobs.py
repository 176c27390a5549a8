"""Collects log-probabilities position by position, with the text of each token."""

from __future__ import annotations

from collections.abc import Iterable

from quire.batch import TokenLogprobs
from quire.outputs import Logprob, LogprobsAtPosition
from quire.tokenizer import Tokenizer


class LogprobsCollector:
    """Log-probabilities of consecutive positions. `cumulative` sums those of the chosen tokens (nats)."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._chosen: list[float] = []
        self.positions: list[LogprobsAtPosition] = []
        self.cumulative = 0.0

    def extend(self, entries: Iterable[TokenLogprobs]) -> None:
        """Append positions; each entry's first token is the chosen one."""
        for entry in entries:
            self._chosen.append(entry.logprobs[0])
            self.cumulative += entry.logprobs[0]
            self.positions.append(self._position(entry))

    def truncate(self, num_positions: int) -> None:
        """Keep only the first positions."""
        if num_positions >= len(self.positions):
            return
        del self._chosen[num_positions:]
        del self.positions[num_positions:]
        self.cumulative = sum(self._chosen)

    def _position(self, entry: TokenLogprobs) -> LogprobsAtPosition:
        return {
            token_id: Logprob(logprob, rank, self._decode(token_id))
            for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True)
        }

    def _decode(self, token_id: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.decode_token(token_id)
