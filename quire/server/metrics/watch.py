"""`RequestWatch`: sees the outputs of one request pass, and tells the metrics of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from quire.errors import RequestFailedError
from quire.outputs import FinishReason, RequestMetrics, RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.metrics.record import RequestRecord
from quire.server.metrics.vllm import VllmSeries


class Recorder(Protocol):
    """Whom a watch tells."""

    vllm: VllmSeries

    def fail(self, error: Exception) -> None:
        """The request was refused or failed."""
        ...

    def finish(self, record: RequestRecord) -> None:
        """The request was answered."""
        ...

    def abort(self) -> None:
        """The request was given up."""
        ...


class RequestWatch:
    """What is known of one request so far; traces and the access log read it when the response is sent."""

    __slots__ = (
        "_is_ended",
        "_is_first",
        "_last",
        "_now",
        "_recorder",
        "error",
        "finish_reasons",
        "num_output_tokens",
        "num_prompt_tokens",
        "params",
        "request_id",
        "start",
        "times",
    )

    def __init__(
        self,
        recorder: Recorder,
        params: SamplingParams,
        request_id: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder = recorder
        self._now = now
        self.request_id = request_id
        """As the client knows it."""
        self.params = params
        self.start = self._last = now()
        """Seconds by the clock `now`."""
        self.num_prompt_tokens = 0
        """0 until the first output."""
        self.num_output_tokens = [0] * params.n
        """Per sequence."""
        self.finish_reasons: list[FinishReason | None] = [None] * params.n
        self.times: RequestMetrics | None = None
        """What the engine measured."""
        self.error: str | None = None
        """Class of the error that it failed with or was refused for; the error itself would keep this in its traceback."""
        self._is_first = True
        self._is_ended = False

    @property
    def end(self) -> float:
        """When the last output came, by the clock of `start`."""
        return self._last

    def observe(self, output: RequestOutput) -> None:
        """Record what one output tells."""
        now = self._now()
        counts, vllm = self.num_output_tokens, self._recorder.vllm
        for choice in output.outputs:
            counts[choice.index] += len(choice.token_ids)
            if choice.finish_reason is not None:
                self.finish_reasons[choice.index] = choice.finish_reason
                vllm.count_end(choice.finish_reason)
        if self._is_first:
            self.num_prompt_tokens, self.times = len(output.prompt_token_ids), output.metrics
            if not output.finished:
                vllm.ttft.observe(now - self.start)
        else:
            vllm.itl.observe(now - self._last)
        if output.finished:
            self._finish(output, now - self.start)
        self._last, self._is_first = now, False

    def fail(self, error: Exception) -> None:
        """The request was refused or failed, not given up."""
        self._is_ended = True
        self.error = type(error).__name__
        self._last = self._now()
        self._recorder.fail(error)

    def close(self) -> None:
        """Nobody reads any more; a request that has not ended counts as aborted. Idempotent."""
        if not self._is_ended:
            self._is_ended = True
            self._last = self._now()
            self.finish_reasons = [reason or "abort" for reason in self.finish_reasons]
            self._recorder.abort()

    def _finish(self, output: RequestOutput, elapsed_s: float) -> None:
        """Record a finished request; if it came as one output, only that knows the first token's time."""
        if output.error is not None:
            self.fail(RequestFailedError(output.error))
            return
        self._is_ended = True
        times = output.metrics
        record = RequestRecord(
            params=self.params,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=output.num_cached_tokens or 0,
            num_output_tokens=sum(self.num_output_tokens),
            longest=max(self.num_output_tokens),
            num_preemptions=0 if times is None else times.num_preemptions,
            elapsed_s=elapsed_s,
            queued_s=None if times is None else times.queued_s,
            ttft_s=None if times is None else times.time_to_first_token_s,
        )
        if self._is_first and record.ttft_s is not None:
            self._recorder.vllm.ttft.observe(record.ttft_s)
        self._recorder.finish(record)
