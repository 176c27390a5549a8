"""Requests under the names of llama.cpp's server, over all models and without labels.

Its sums of seconds are sums over requests, also of those that ran at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.server.metrics.record import RequestRecord

_PREFIX = "llamacpp:"


class LlamaCppRequests(Collector):
    """Tokens and times of the requests that finished."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        self._prompt_s = 0.0
        self._decode_s = 0.0
        self._num_tokens_max = 0
        registry.register(self)

    def finish(self, record: RequestRecord) -> None:
        """A request finished."""
        self._num_prompt_tokens += record.num_prompt_tokens
        self._num_output_tokens += record.num_output_tokens
        self._prompt_s += record.prompt_s
        self._decode_s += record.decode_s
        longest = record.num_prompt_tokens + record.num_output_tokens // record.params.n
        self._num_tokens_max = max(self._num_tokens_max, longest)

    def collect(self) -> Iterator[Metric]:
        """What was counted, and the two rates that follow from it."""
        prompt, output = self._num_prompt_tokens, self._num_output_tokens
        for name, help_text, value in (
            ("prompt_tokens", "Prompt tokens of finished requests.", prompt),
            ("prompt_seconds", "Time spent on prompts, s.", self._prompt_s),
            ("tokens_predicted", "Output tokens of finished requests.", output),
            ("tokens_predicted_seconds", "Time spent on output after the first token, s.", self._decode_s),
        ):
            yield CounterMetricFamily(_PREFIX + name, help_text, value=value)
        for name, help_text, value in (
            ("prompt_tokens_seconds", "Prompt tokens per second of a request.", _rate(prompt, self._prompt_s)),
            ("predicted_tokens_seconds", "Output tokens per second of a request.", _rate(output, self._decode_s)),
            ("n_tokens_max", "Most tokens of a sequence so far.", self._num_tokens_max),
        ):
            yield GaugeMetricFamily(_PREFIX + name, help_text, value=value)

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0
