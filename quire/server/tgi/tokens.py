"""Tokens as TGI shows them: `{"id", "text", "logprob", "special"}`, the texts joined giving the generated text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire.outputs import CompletionOutput, LogprobsAtPosition

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class TokenRenderer:
    """Renders the tokens of one sequence in order. What a token's bytes leave open becomes text of a later one."""

    def __init__(self, tokenizer: Any, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.all_special_ids
        self._stream = tokenizer.make_stream(prompt_token_ids)
        self._num_chars = 0

    def render(self, choice: CompletionOutput, generated_text: str | None) -> list[dict[str, Any]]:
        """Tokens that are new in `choice`; with the last of them the whole generated text is known.

        That text decides where the last token's own ends: a stop sequence may cut it, open bytes may end it.
        """
        positions = choice.logprobs or []
        tokens = [self._token(token_id, position) for token_id, position in zip(choice.token_ids, positions)]
        if generated_text is not None and tokens and not tokens[-1]["special"]:
            start = self._num_chars - len(tokens[-1]["text"])
            tokens[-1]["text"] = generated_text[start:]
        return tokens

    def _token(self, token_id: int, position: LogprobsAtPosition) -> dict[str, Any]:
        text = self._stream.push([token_id])
        is_special = token_id in self._special_ids
        if is_special:
            text = self._tokenizer.decode_token(token_id)
        else:
            self._num_chars += len(text)
        return {
            "id": token_id,
            "text": text,
            "logprob": _finite(position[token_id].logprob),
            "special": is_special,
        }

    def no_token(self, generated_text: str) -> dict[str, Any]:
        """For an end that comes without a token, since clients read one from every event: what no token showed yet.

        A special token is not shown by them.
        """
        rest = generated_text[self._num_chars :]
        return {"id": 0, "text": rest, "logprob": 0.0, "special": not rest}

    def top_tokens(self, choice: CompletionOutput, num_top: int) -> list[list[dict[str, Any]]]:
        """The likeliest tokens of each new position, best first, each with its text on its own."""
        return [self._top(position, num_top) for position in choice.logprobs or []]

    def _top(self, position: LogprobsAtPosition, num_top: int) -> list[dict[str, Any]]:
        likeliest = sorted(position.items(), key=lambda item: item[1].logprob, reverse=True)[:num_top]
        return [
            {
                "id": token_id,
                "text": self._tokenizer.decode_token(token_id),
                "logprob": _finite(entry.logprob),
                "special": token_id in self._special_ids,
            }
            for token_id, entry in likeliest
        ]


def render_prefill(
    tokenizer: Any, token_ids: Sequence[int], positions: Sequence[LogprobsAtPosition | None] | None
) -> list[dict[str, Any]]:
    """The prompt's tokens, each with its logprob; the first has none."""
    return [
        {
            "id": token_id,
            "text": tokenizer.decode_token(token_id),
            "logprob": None if position is None else _finite(position[token_id].logprob),
        }
        for token_id, position in zip(token_ids, positions or [])
    ]


def simple_tokens(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[dict[str, Any]]:
    """Tokens of a text with the characters that each covers: `{"id", "text", "start", "stop"}`."""
    return [
        {"id": token_id, "text": text[start:stop], "start": start, "stop": stop}
        for token_id, start, stop in tokenizer.encode_spans(text, add_special_tokens, parameter="messages")
    ]


def finish_name(choice: CompletionOutput) -> str:
    """TGI's name for why a sequence ended."""
    if choice.finish_reason != "stop":
        return "length"
    return "stop_sequence" if isinstance(choice.stop_reason, str) else "eos_token"


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
