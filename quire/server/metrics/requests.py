"""`ServerMetrics`: the registry of one application. `ModelMetrics`: what the requests to one model leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from quire import envs
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
        self._models: dict[str, ModelMetrics] = {}
        self._engines = EngineCollector()
        self._registry.register(self._engines)
        self._shared = self._make_shared()
        """What is exposed in place of the registry where several front ends serve: the sums over all of them."""
        self.vllm = VllmFamilies(self._registry, max_model_len)
        self.tgi = TgiRequests(self._registry, max_model_len)
        self.llamacpp = LlamaCppRequests(self._registry)

    @property
    def is_shared(self) -> bool:
        """Whether other processes show these numbers too."""
        return self._shared is not None

    def _make_shared(self) -> CollectorRegistry | None:
        if envs.PROMETHEUS_MULTIPROC_DIR.read() is None:
            return None
        shared = CollectorRegistry()
        MultiProcessCollector(shared)
        shared.register(self._engines)
        return shared

    def render(self) -> bytes:
        """The exposition in Prometheus' text format."""
        self.tgi.flush()
        self.llamacpp.flush()
        for model in self._models.values():
            model.vllm.flush()
        return generate_latest(self._registry if self._shared is None else self._shared)

    def of_model(self, name: str, read_stats: Callable[[], Any], block_size: int = 16) -> ModelMetrics:
        """The series of one model, and its engine's numbers from now on; `block_size` is its KV cache's, tokens."""
        self._engines.add(name, EngineSource(read_stats, block_size))
        if name not in self._models:  # a model that is loaded again goes on where it stopped
            self._models[name] = ModelMetrics(self, name)
        return self._models[name]

    def forget_engine(self, name: str) -> None:
        """A model's engine is gone, where it has two the older one; its totals and what its requests left stay."""
        self._engines.end(name)


class ModelMetrics:
    """What the requests to one model leave."""

    def __init__(self, metrics: ServerMetrics, model_name: str) -> None:
        self.vllm = VllmSeries(metrics.vllm, model_name)
        self._tgi = metrics.tgi
        self._llamacpp = metrics.llamacpp
        self._is_shared = metrics.is_shared

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Hold this while a request is checked before it goes to the engine: times it, and counts a refusal."""
        start = time.monotonic()
        try:
            yield
        except QuireError as error:
            self._tgi.start()
            self.fail(error)
            raise
        self._tgi.validate(time.monotonic() - start)

    def watch(self, params: SamplingParams) -> RequestWatch:
        """What writes down the times of one request, which starts now."""
        self._tgi.start()
        return RequestWatch(self, params)

    def fail(self, error: Exception) -> None:
        """Count a request that was refused or failed."""
        self._tgi.fail(error)
        self._share()

    def finish(self, record: RequestRecord) -> None:
        """Record a request that was answered."""
        self.vllm.finish(record)
        self._tgi.finish(record)
        self._llamacpp.finish(record)
        self._share()

    def abort(self) -> None:
        """Count a request that was given up."""
        self.vllm.count_end("abort")
        self._share()

    def _share(self) -> None:
        """Another front end may be asked for the sum of all."""
        if self._is_shared:
            self.vllm.flush()
            self._tgi.flush()
            self._llamacpp.flush()


class RequestWatch:
    """Writes down the times of one request."""

    __slots__ = ("_is_ended", "_is_first", "_last", "_metrics", "_num_tokens", "_params", "_start", "_vllm")

    def __init__(self, metrics: ModelMetrics, params: SamplingParams) -> None:
        self._metrics = metrics
        self._vllm = metrics.vllm
        self._params = params
        self._start = self._last = time.monotonic()
        self._num_tokens = 0
        self._is_first = True
        self._is_ended = False

    def observe(self, output: RequestOutput) -> None:
        """Record what one output tells."""
        now = time.monotonic()
        for choice in output.outputs:
            self._num_tokens += len(choice.token_ids)
            if choice.finish_reason is not None:
                self._vllm.count_end(choice.finish_reason)
        if not self._is_first:
            self._vllm.itl.observe(now - self._last)
        elif not output.finished:
            self._vllm.ttft.observe(now - self._start)
        if output.finished:
            self._finish(output, now - self._start)
        self._last, self._is_first = now, False

    def fail(self, error: Exception) -> None:
        """The request was refused or failed, not given up."""
        self._is_ended = True
        self._metrics.fail(error)

    def close(self) -> None:
        """Nobody reads any more; a request that has not ended counts as aborted. Idempotent."""
        if not self._is_ended:
            self._is_ended = True
            self._metrics.abort()

    def _finish(self, output: RequestOutput, elapsed_s: float) -> None:
        """Record a finished request; if it came as one output, only that knows the first token's time."""
        if output.error is not None:
            self.fail(RequestFailedError(output.error))
            return
        self._is_ended = True
        times = output.metrics
        record = RequestRecord(
            params=self._params,
            num_prompt_tokens=len(output.prompt_token_ids),
            num_output_tokens=self._num_tokens,
            elapsed_s=elapsed_s,
            queued_s=None if times is None else times.queued_s,
            ttft_s=None if times is None else times.time_to_first_token_s,
        )
        if self._is_first and record.ttft_s is not None:
            self._vllm.ttft.observe(record.ttft_s)
        self._metrics.finish(record)
