"""`ServerMetrics`: the registry of one application. `ModelMetrics`: what the requests to one model leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from quire import envs
from quire.config.types import EngineConfig
from quire.errors import QueueFullError, QuireError
from quire.sampling_params import SamplingParams
from quire.server.metrics.engine import EngineCollector, EngineSource
from quire.server.metrics.http import HttpMetrics
from quire.server.metrics.llamacpp import LlamaCppRequests
from quire.server.metrics.memory import MemoryCollector
from quire.server.metrics.record import RequestRecord
from quire.server.metrics.tgi import TgiRequests
from quire.server.metrics.vllm import VllmFamilies, VllmSeries
from quire.server.metrics.watch import RequestWatch

disable_created_metrics()  # a second series for each one, which says when this process began to count


class ServerMetrics:
    """The metrics of one application, over all its models."""

    def __init__(self, max_model_len: int, now: Callable[[], float] = time.monotonic) -> None:
        """`max_model_len`, tokens, bounds the histograms of lengths; `now` is the clock of what requests take."""
        self.now = now
        self._registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._engines = EngineCollector()
        self._shared_folder: str | None = envs.PROMETHEUS_MULTIPROC_DIR.read()
        """Where several front ends keep their numbers; each exposes the sums over all of them."""
        self._exposed = self._make_exposed()
        self.vllm = VllmFamilies(self._registry, max_model_len)
        self.tgi = TgiRequests(self._registry, max_model_len)
        self.llamacpp = LlamaCppRequests(self._registry)
        self.http = HttpMetrics(self._registry)

    @property
    def is_shared(self) -> bool:
        """Whether other processes show these numbers too."""
        return self._shared_folder is not None

    def _make_exposed(self) -> CollectorRegistry:
        exposed = self._registry
        if self._shared_folder is None:
            ProcessCollector(registry=exposed)
            PlatformCollector(registry=exposed)
            GCCollector(registry=exposed)
        else:
            exposed = CollectorRegistry()
            MultiProcessCollector(exposed)
        exposed.register(self._engines)
        exposed.register(MemoryCollector(self._engines.process_ids, self._shared_folder))
        return exposed

    def render(self, encode: Callable[[Any], bytes] = generate_latest) -> bytes:
        """The exposition, in Prometheus' text format or in what `encode` makes of a registry."""
        self.tgi.flush()
        self.llamacpp.flush()
        self.http.flush()
        for model in self._models.values():
            model.vllm.flush()
        return encode(self._exposed)

    def of_model(self, name: str, read_stats: Callable[[], Any], config: EngineConfig) -> ModelMetrics:
        """The series of one model, and its engine's numbers from now on."""
        self._engines.add(name, EngineSource(read_stats, config))
        if name not in self._models:  # a model that is loaded again goes on where it stopped
            self._models[name] = ModelMetrics(self, name)
        return self._models[name]

    def set_up(self, name: str, *, is_up: bool) -> None:
        """Whether the engine of a model can serve now."""
        self._engines.set_up(name, is_up=is_up)

    def forget_engine(self, name: str) -> None:
        """A model's engine is gone, where it has two the older one; its totals and what its requests left stay."""
        self._engines.end(name)

    def count_http(
        self, handler: str, method: str, status: int, seconds: float, num_bytes_in: int, num_bytes_out: int
    ) -> None:
        """An HTTP request was answered, or given up."""
        self.http.count(handler, method, status, seconds, num_bytes_in, num_bytes_out)
        if self.is_shared:
            self.http.flush()


class ModelMetrics:
    """What the requests to one model leave."""

    def __init__(self, metrics: ServerMetrics, model_name: str) -> None:
        self.vllm = VllmSeries(metrics.vllm, model_name)
        self._tgi = metrics.tgi
        self._llamacpp = metrics.llamacpp
        self._is_shared = metrics.is_shared
        self._now = metrics.now

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Hold this while a request is checked before it goes to the engine: times it, and counts a refusal."""
        start = self._now()
        try:
            yield
        except QuireError as error:
            self._tgi.start()
            self.fail(error)
            raise
        self._tgi.validate(self._now() - start)

    def watch(self, params: SamplingParams, request_id: str = "") -> RequestWatch:
        """What writes down the times of one request, which starts now."""
        self._tgi.start()
        return RequestWatch(self, params, request_id, self._now)

    def fail(self, error: Exception) -> None:
        """Count a request that was refused or failed."""
        if isinstance(error, QueueFullError):
            self.vllm.reject()
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
