"""The objects that generate and chat answer with: pieces of text, then one with counts and times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from quire.outputs import CompletionOutput, Logprob, RequestOutput
from quire.server.durations import rfc3339
from quire.server.errors import ErrorReport, encode_json
from quire.server.merge import Batch

_LOWEST_LOGPROB = -9999.0
"""JSON has no -inf."""

TextField = Callable[[str], dict[str, Any]]
"""The part of the object that carries text: `response` in generate, `message` in chat."""


def response_field(text: str) -> dict[str, Any]:
    """Text of generate."""
    return {"response": text}


def message_field(text: str) -> dict[str, Any]:
    """Text of chat."""
    return {"message": {"role": "assistant", "content": text}}


class Stopwatch:
    """Times of one request, integer nanoseconds."""

    def __init__(self) -> None:
        self._start = time.perf_counter_ns()
        self.load_ns = 0

    def stop_load(self) -> None:
        """The model is there."""
        self.load_ns = self.total_ns()

    def total_ns(self) -> int:
        """Since the request came."""
        return time.perf_counter_ns() - self._start


class Answer:
    """One response, whole or as a stream (a `Renderer`). Needs the outputs in their order."""

    def __init__(
        self,
        name: str,
        text_field: TextField,
        watch: Stopwatch,
        tokenizer: Any,
        *,
        num_top: int | None,
        keeps_context: bool,
    ) -> None:
        """`num_top`: likeliest tokens per position, None without logprobs; `keeps_context`: tell the ids at the end."""
        self._name = name
        self._text_field = text_field
        self._watch = watch
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._keeps_context = keeps_context
        self._last: RequestOutput | None = None
        self._output_ids: list[int] = []
        self._reason: str | None = None

    # -- a stream --------------------------------------------------------------------------------------------

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        text, logprobs = "", []
        for _, output in batch:
            choice = self._take(output)
            text += choice.text
            logprobs += self._logprobs(choice)
        if not text and not logprobs:
            return b""
        return _line(self._head() | self._text_field(text) | {"done": False} | _if_any(logprobs))

    def end(self) -> bytes:
        """See `Renderer.end`."""
        return _line(self._done(""))

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        return _line({"error": report.message})

    # -- whole -----------------------------------------------------------------------------------------------

    def whole(self, output: RequestOutput) -> dict[str, Any]:
        """The response of a finished request."""
        choice = self._take(output)
        return self._done(choice.text) | _if_any(self._logprobs(choice))

    # -- parts -----------------------------------------------------------------------------------------------

    def _take(self, output: RequestOutput) -> CompletionOutput:
        (choice,) = output.outputs
        self._last = output
        self._output_ids += choice.token_ids
        self._reason = choice.finish_reason or self._reason
        return choice

    def _head(self) -> dict[str, Any]:
        return {"model": self._name, "created_at": rfc3339(time.time())}

    def _done(self, text: str) -> dict[str, Any]:
        body = self._head() | self._text_field(text)
        body |= {"done": True, "done_reason": self._reason or "stop"}
        output = self._last
        prompt_ids = [] if output is None else output.prompt_token_ids
        if self._keeps_context:
            body["context"] = prompt_ids + self._output_ids
        total_ns, load_ns = self._watch.total_ns(), self._watch.load_ns
        queue_ns, prompt_ns = _prompt_times(output)
        return body | {
            "total_duration": total_ns,
            "load_duration": load_ns,
            "prompt_eval_count": len(prompt_ids),
            "prompt_eval_duration": prompt_ns,
            "eval_count": len(self._output_ids),
            "eval_duration": max(1, total_ns - load_ns - queue_ns - prompt_ns),
        }

    def _logprobs(self, choice: CompletionOutput) -> list[dict[str, Any]]:
        if self._num_top is None:
            return []
        found = []
        for token_id, position in zip(choice.token_ids, choice.logprobs or ()):
            likeliest = sorted(position.items(), key=lambda item: item[1].logprob, reverse=True)[: self._num_top]
            entry = self._logprob(token_id, position.get(token_id, Logprob(_LOWEST_LOGPROB)))
            if self._num_top:
                entry["top_logprobs"] = [self._logprob(*top) for top in likeliest]
            found.append(entry)
        return found

    def _logprob(self, token_id: int, entry: Logprob) -> dict[str, Any]:
        text = entry.decoded_token
        return {
            "token": self._tokenizer.decode_token(token_id) if text is None else text,
            "logprob": entry.logprob if math.isfinite(entry.logprob) else _LOWEST_LOGPROB,
            "bytes": list(self._tokenizer.token_bytes(token_id)),
        }


def without_generation(name: str, text_field: TextField, reason: str) -> dict[str, Any]:
    """The answer to an empty request, which only loads or unloads the model."""
    head = {"model": name, "created_at": rfc3339(time.time())}
    return head | text_field("") | {"done": True, "done_reason": reason}


def _prompt_times(output: RequestOutput | None) -> tuple[int, int]:
    """(time in the queue, time on the prompt), nanoseconds, as far as the engine measured them."""
    times = None if output is None else output.metrics
    if times is None or times.time_to_first_token_s is None:
        return 0, 1
    queued = times.queued_s or 0.0
    return int(queued * 1e9), max(1, int((times.time_to_first_token_s - queued) * 1e9))


def _if_any(logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"logprobs": logprobs} if logprobs else {}


def _line(content: dict[str, Any]) -> bytes:
    return encode_json(content) + b"\n"
