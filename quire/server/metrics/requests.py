"""`ServerMetrics`: the registry of one application. `ModelMetrics`: sees the requests to one model pass."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from quire.errors import QuireError, RequestFailedError
from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.metrics.engine import EngineCollector, EngineSource
from quire.server.metrics.llamacpp import LlamaCppRequests
from quire.server.metrics.record import RequestRecord
from quire.server.metrics.tgi import TgiRequests
from quire.server.metrics.vllm import VllmFamilies, VllmSeries


class ServerMetrics:
    """The metrics of one application, over all its models."""

    def __init__(self, max_model_len: int) -> None:
        """`max_model_len`, tokens, bounds the histograms of lengths."""
        self._registry = CollectorRegistry()
        self._engines = EngineCollector()
        self._registry.register(self._engines)
        self.vllm = VllmFamilies(self._registry, max_model_len)
        self.tgi = TgiRequests(self._registry, max_model_len)
        self.llamacpp = LlamaCppRequests(self._registry)

    def render(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)

    def of_model(self, name: str, read_stats: Callable[[], Any], block_size: int = 16) -> ModelMetrics:
        """The series of one model, and its engine's numbers from now on; `block_size` is its KV cache's, tokens."""
        self._engines.sources[name] = EngineSource(read_stats, block_size)
        return ModelMetrics(self, name)

    def forget_engine(self, name: str) -> None:
        """No more numbers from the engine of a model that was unloaded; what its requests left stays."""
        self._engines.sources.pop(name, None)


class ModelMetrics:
    """What the requests to one model leave. `observe` wraps a request's outputs and writes down its times."""

    def __init__(self, metrics: ServerMetrics, model_name: str) -> None:
        self._vllm = VllmSeries(metrics.vllm, model_name)
        self._tgi = metrics.tgi
        self._llamacpp = metrics.llamacpp

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Hold this while a request is checked before it goes to the engine: times it, and counts a refusal."""
        start = time.monotonic()
        try:
            yield
        except QuireError as error:
            self._tgi.start()
            self._tgi.fail(error)
            raise
        self._tgi.validate(time.monotonic() - start)

    async def observe(
        self, outputs: AsyncIterator[RequestOutput], params: SamplingParams
    ) -> AsyncGenerator[RequestOutput]:
        """Pass the outputs of one request through and record it; closing this closes them."""
        self._tgi.start()
        start = last = time.monotonic()
        num_tokens, is_first, is_finished = 0, True, False
        try:
            async for output in outputs:
                now = time.monotonic()
                num_tokens += self._count_choices(output)
                if not is_first:
                    self._vllm.itl.observe(now - last)
                elif not output.finished:
                    self._vllm.ttft.observe(now - start)
                if output.finished:
                    self._finish(output, params, now - start, num_tokens, is_first)
                last, is_first, is_finished = now, False, output.finished
                yield output
        except QuireError as error:
            is_finished = True  # refused or failed, not given up
            self._tgi.fail(error)
            raise
        finally:
            await outputs.aclose()  # type: ignore[attr-defined]
            if not is_finished:
                self._vllm.count_sequence("abort")

    def _count_choices(self, output: RequestOutput) -> int:
        """Count the sequences that end with this output; returns its number of tokens."""
        num_tokens = 0
        for choice in output.outputs:
            num_tokens += len(choice.token_ids)
            if choice.finish_reason is not None:
                self._vllm.count_sequence(choice.finish_reason)
        return num_tokens

    def _finish(
        self, output: RequestOutput, params: SamplingParams, elapsed_s: float, num_tokens: int, is_whole: bool
    ) -> None:
        """Record a finished request; `is_whole`: it came as one output, which alone knows its first token's
        time.
        """
        times = output.metrics
        record = RequestRecord(
            params=params,
            num_prompt_tokens=len(output.prompt_token_ids),
            num_output_tokens=num_tokens,
            elapsed_s=elapsed_s,
            queued_s=None if times is None else times.queued_s,
            ttft_s=None if times is None else times.time_to_first_token_s,
        )
        if is_whole and record.ttft_s is not None:
            self._vllm.ttft.observe(record.ttft_s)
        self._vllm.finish(record)
        if output.error is not None:
            self._tgi.fail(RequestFailedError(output.error))
            return
        self._tgi.finish(record)
        self._llamacpp.finish(record)
