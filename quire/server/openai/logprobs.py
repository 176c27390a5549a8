"""Log-probabilities in the shapes of the two APIs. JSON has no -inf; it is sent as -9999."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from quire.outputs import Logprob, LogprobsAtPosition

LOWEST = -9999.0


def finite(logprob: float) -> float:
    """The value, with -inf and NaN replaced by the lowest one."""
    return logprob if math.isfinite(logprob) else LOWEST


def _text(token_id: int, entry: Logprob) -> str:
    return entry.decoded_token if entry.decoded_token is not None else f"token_id:{token_id}"


def _id_text(token_id: int, entry: Logprob) -> str:
    return f"token_id:{token_id}"


class CompletionLogprobs:
    """The `logprobs` object of one completion choice; `text_offset` goes on from piece to piece of a stream."""

    def __init__(self, *, as_ids: bool = False) -> None:
        """`as_ids` shows tokens as `token_id:N` instead of their text."""
        self._offset = 0
        self._show = _id_text if as_ids else _text

    def render(
        self, token_ids: Sequence[int], positions: Sequence[LogprobsAtPosition | None]
    ) -> dict[str, list[Any]]:
        """One entry per token; a position without logprobs (the first prompt token) has null."""
        piece: dict[str, list[Any]] = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
        for token_id, position in zip(token_ids, positions):
            self._add(piece, token_id, position)
        return piece

    def render_prompt(
        self, token_ids: Sequence[int], positions: Sequence[LogprobsAtPosition | None], first_text: str
    ) -> dict[str, list[Any]]:
        """Like `render` for a prompt, whose first token has a text but no logprobs."""
        piece = self.render(token_ids, positions)
        piece["tokens"][0] = first_text if self._show is _text else _id_text(token_ids[0], Logprob(0.0))
        piece["text_offset"] = [0, *(offset + len(first_text) for offset in piece["text_offset"][1:])]
        self._offset += len(first_text)
        return piece

    def _add(self, piece: dict[str, list[Any]], token_id: int, position: LogprobsAtPosition | None) -> None:
        entry = None if position is None else position.get(token_id)
        text = "" if entry is None else _text(token_id, entry)
        piece["tokens"].append("" if entry is None else self._show(token_id, entry))
        piece["token_logprobs"].append(None if entry is None else finite(entry.logprob))
        piece["text_offset"].append(self._offset)
        piece["top_logprobs"].append(None if position is None else _top_by_text(position, self._show))
        self._offset += len(text)


def _top_by_text(position: LogprobsAtPosition, show: Callable[[int, Logprob], str]) -> dict[str, float]:
    """Text -> logprob; of several tokens with one text, the first (likeliest) stays."""
    top: dict[str, float] = {}
    for token_id, entry in position.items():
        top.setdefault(show(token_id, entry), finite(entry.logprob))
    return top


def join_logprobs(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The arrays of two pieces, one after the other."""
    return {name: first[name] + second[name] for name in first}


def chat_logprobs(
    token_ids: Sequence[int],
    positions: Sequence[LogprobsAtPosition],
    num_top: int,
    tokenizer: Any,
    *,
    as_ids: bool = False,
) -> dict[str, Any]:
    """The `logprobs` object of a chat choice: the sampled token and exactly `num_top` likeliest ones per position,
    shown as `token_id:N` with `as_ids`.
    """
    content = []
    for token_id, position in zip(token_ids, positions):
        likeliest = sorted(position.items(), key=lambda item: item[1].logprob, reverse=True)[:num_top]
        entry = _chat_entry(token_id, position.get(token_id, Logprob(LOWEST)), tokenizer, as_ids)
        entry["top_logprobs"] = [_chat_entry(top_id, top, tokenizer, as_ids) for top_id, top in likeliest]
        content.append(entry)
    return {"content": content, "refusal": None}


def _chat_entry(token_id: int, entry: Logprob, tokenizer: Any, as_ids: bool) -> dict[str, Any]:
    text = _text(token_id, entry)
    raw = text.encode() if tokenizer is None else tokenizer.token_bytes(token_id)
    return {
        "token": _id_text(token_id, entry) if as_ids else text,
        "logprob": finite(entry.logprob),
        "bytes": list(raw),
    }


def prompt_logprobs_list(positions: Sequence[LogprobsAtPosition | None] | None) -> list[Any] | None:
    """The `prompt_logprobs` extension: null for the first token, then token id -> logprob, rank, text."""
    if positions is None:
        return None
    return [
        None
        if position is None
        else {
            str(token_id): {
                "logprob": finite(top.logprob),
                "rank": top.rank,
                "decoded_token": top.decoded_token,
            }
            for token_id, top in position.items()
        }
        for position in positions
    ]
