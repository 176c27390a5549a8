"""Requests under the names of llama.cpp's server, over all models and without labels.

Its sums of seconds are sums over requests, also of those that ran at the same time.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from quire.server.metrics.gathered import GatheredCount, GatheredSet
from quire.server.metrics.record import RequestRecord

_PREFIX = "llamacpp:"


class LlamaCppRequests:
    """Tokens and times of the requests that finished. Where several front ends serve, the rates are those of one of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gathered = GatheredSet()

        def counter(name: str, help_text: str) -> GatheredCount:
            return self._gathered.count(Counter(_PREFIX + name, help_text, registry=registry))

        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished requests.")
        self._prompt_seconds = counter("prompt_seconds", "Time spent on prompts, s.")
        self._output_tokens = counter("tokens_predicted", "Output tokens of finished requests.")
        self._output_seconds = counter("tokens_predicted_seconds", "Time spent on output after the first token, s.")
        self._prompt_rate = _Rate("prompt_tokens_seconds", "Prompt tokens per second of a request.", registry)
        self._output_rate = _Rate("predicted_tokens_seconds", "Output tokens per second of a request.", registry)
        self._num_tokens_max = 0
        self._longest = Gauge(
            _PREFIX + "n_tokens_max", "Most tokens of a sequence so far.", registry=registry, multiprocess_mode="max"
        )

    def finish(self, record: RequestRecord) -> None:
        """A request finished."""
        num_prompt, num_output, n = record.num_prompt_tokens, record.num_output_tokens, record.params.n
        prompt_s, decode_s = record.prompt_s, record.decode_s
        self._prompt_tokens.add(num_prompt)
        self._prompt_seconds.add(prompt_s)
        self._prompt_rate.add(num_prompt, prompt_s)
        self._output_tokens.add(num_output)
        self._output_seconds.add(decode_s)
        self._output_rate.add(num_output, decode_s)
        self._num_tokens_max = max(self._num_tokens_max, num_prompt + num_output // n)

    def flush(self) -> None:
        """Bring the metrics up to date."""
        self._gathered.flush()
        self._prompt_rate.flush()
        self._output_rate.flush()
        self._longest.set(self._num_tokens_max)


class _Rate:
    """Mean of tokens per second since the start."""

    def __init__(self, name: str, help_text: str, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(_PREFIX + name, help_text, registry=registry, multiprocess_mode="mostrecent")
        self._num_tokens = 0
        self._seconds = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Take in one request."""
        self._num_tokens += num_tokens
        self._seconds += seconds

    def flush(self) -> None:
        """Bring the metric up to date."""
        if self._seconds:
            self._gauge.set(self._num_tokens / self._seconds)
