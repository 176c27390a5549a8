"""`AsyncLLMEngine`: many requests at once from one event loop; the core runs in a thread or in its own
process.

Text work (tokenizing, detokenizing) happens here, on the event loop's side of the border.
"""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import msgspec

from quire import errors
from quire.config.engine_args import EngineArgs
from quire.config.types import EngineConfig
from quire.core.request import RequestUpdate
from quire.engine.admission import Admission
from quire.engine.clients import CoreClient, ThreadClient
from quire.engine.inputs import InputProcessor, PreparedRequest, Prompt
from quire.engine.messages import AbortRequests, EngineDown, EngineUp, Event, LifeEvent, Reply, StepOutputs
from quire.engine.observation import Observation
from quire.engine.output_stream import Bulletin, OnNews, OutputStream, RequestStream
from quire.engine.outputs import OutputProcessor
from quire.engine.pending_calls import PendingCalls
from quire.engine.pooling import own_task, pooling_output, pooling_request
from quire.engine.process_client import ProcessClient
from quire.engine.replay import Replay
from quire.engine.stats import EngineStats, StatsHistory, StatsLogger
from quire.engine.text import load_text_side
from quire.errors import EngineDeadError, NotReadyError, NotSupportedError, RequestFailedError
from quire.log import get_logger
from quire.outputs import PoolingRequestOutput, RequestOutput
from quire.pooling_params import PoolingParams
from quire.sampling_params import SamplingParams
from quire.tokenizer import Tokenizer

_log = get_logger(__name__)

_THREAD_CHARS = 4096
"""Longer prompts are tokenized in a thread, so that they do not hold up the event loop."""
_DRAIN_POLL_S = 0.02
_CLOSE_TIMEOUT_S = 5.0


class AsyncLLMEngine:
    """Serves requests concurrently. Use it from one event loop at a time; it
    attaches to the loop that first calls it.

    Requests outlive the core's process: when another one takes over, all that have not finished are sent again.
    """

    def __init__(self, config: EngineConfig, client: CoreClient, tokenizer: Tokenizer | None = None) -> None:
        """`client` leads to a loaded core. The tokenizer is loaded unless one is given."""
        self.config = config
        self.tokenizer = load_text_side(config) if tokenizer is None else tokenizer
        self.max_model_len = client.ready.max_model_len
        self._client = client
        self._inputs = InputProcessor(
            config.model, self.tokenizer, self.max_model_len, client.place, config.media
        )
        self._outputs = OutputProcessor(self.tokenizer)
        self._admission = Admission(config.scheduler, client.place)
        self._streams: dict[str, RequestStream] = {}
        self._bulletin = Bulletin()
        self._calls = PendingCalls(client.place.index, client.send)
        self._replay = Replay()
        self._is_down = False
        """Whether the core has no process for the moment."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: EngineDeadError | None = None
        self._stats = StatsHistory(client.ready.stats)
        self._stats_logger = StatsLogger(_log, enabled=not config.disable_log_stats)

    @classmethod
    def from_engine_args(cls, args: EngineArgs, *, own_process: bool = False) -> AsyncLLMEngine:
        """Resolve the options and load the model, in this process or in one of its own.

        Raises ConfigError or ModelLoadError, also for what went wrong in the other process.
        """
        config = args.create_engine_config()
        tokenizer = load_text_side(config)  # before the model: a missing one is said at once
        return cls(config, ProcessClient(config) if own_process else ThreadClient(config), tokenizer)

    # -- requests --------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs of one request as they grow, in the kind that `sampling_params.output_kind` names.

        Closing or cancelling the iterator aborts the request. A reader that is slower than the engine gets
        several steps in one output. Raises InvalidRequestError, QueueFullError, or EngineDeadError at any
        point.
        """
        arrived = asyncio.Event()
        stream = await self.open(
            prompt,
            sampling_params,
            request_id,
            arrived.set,
            priority=priority,
            cache_salt=cache_salt,
            add_special_tokens=add_special_tokens,
        )
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                output = stream.take()
                yield output
                if output.finished:
                    return
        finally:
            stream.close()

    async def encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncIterator[PoolingRequestOutput]:
        """The pooled numbers of one prompt, as `LLM.encode` gives them: one output, at the end. Raises as `generate` does."""
        model = self.config.model
        params = pooling_request(model.pooling, pooling_params, own_task(model.pooling), model.hf.hidden_size)
        async for output in self.generate(prompt, params, request_id, priority=priority):
            yield pooling_output(output)

    async def open(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None,
        request_id: str | None,
        on_news: OnNews,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        add_special_tokens: bool = True,
    ) -> OutputStream:
        """Start a request whose reader is called as soon as a step brings something: `generate` without a task in between.

        `tenant` is for whom it is computed, under the policy `fair`. Raises as `generate` does.
        """
        self._attach()
        self._check_alive()
        request_id = uuid.uuid4().hex if request_id is None else request_id
        options = {
            "priority": priority,
            "cache_salt": cache_salt,
            "tenant": tenant,
            "add_special_tokens": add_special_tokens,
        }
        return self._submit(await self._prepare(request_id, prompt, sampling_params, options), on_news)

    async def _prepare(
        self, request_id: str, prompt: Prompt, params: SamplingParams | None, options: dict[str, Any]
    ) -> PreparedRequest:
        text = prompt.get("prompt") if isinstance(prompt, dict) else prompt
        has_images = isinstance(prompt, dict) and prompt.get("multi_modal_data") is not None
        if has_images or (isinstance(text, str) and len(text) > _THREAD_CHARS):
            return await asyncio.to_thread(self._inputs.prepare, request_id, prompt, params, **options)
        return self._inputs.prepare(request_id, prompt, params, **options)

    def _submit(self, request: PreparedRequest, on_news: OnNews) -> RequestStream:
        if request.params.logits_processors is not None:
            raise NotSupportedError(
                "logits_processors are for LLM and LLMEngine only", parameter="logits_processors"
            )
        self._check_alive()
        self._admission.check(request.tenant, self._outputs, self._stats.latest)
        state = self._outputs.add(request)
        stream = self._streams[request.request_id] = RequestStream(state, on_news, self._abort)
        for child in request.children:
            self._client.send(child)
        return stream

    async def abort(self, request_id: str) -> None:
        """End a request: its iterator gets a last output, finished by `abort`. Ignores unknown ids."""
        self._abort(request_id)

    def _abort(self, request_id: str) -> None:
        state, child_ids = self._outputs.abort(request_id)
        if state is None:
            return
        if child_ids:
            self._client.send(AbortRequests(child_ids))
        self._bulletin.tell([self._streams.pop(request_id)])

    # -- events ----------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Have events delivered to the running loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop and self._streams and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("this engine has requests on another event loop")
        if self._loop is not loop:
            self._loop = loop
            self._bulletin = Bulletin()  # another loop's turn does not come any more
            # In a context of its own: what the engine says belongs to no request, also where a request asked first.
            contextvars.Context().run(self._client.attach, loop, self._handle_events)

    def _handle_events(self, events: Sequence[Event]) -> None:
        """Take in what the core has said. Several steps count as one: readers see what they brought together."""
        updates: list[RequestUpdate] = []
        for event in events:
            if isinstance(event, StepOutputs):
                updates += event.updates
                self._stats.observe(event.stats)
                self._stats_logger.observe(self._stats.latest)
            elif isinstance(event, Reply):
                self._calls.settle(event)
            else:
                self._handle_updates(updates)  # what a process has said counts, and comes before its end
                updates = []
                self._handle_life(event)
        self._handle_updates(updates)

    def _handle_updates(self, updates: list[RequestUpdate]) -> None:
        applied = self._outputs.apply(updates)
        if applied.aborts:
            self._client.send(AbortRequests(applied.aborts))
        streams = self._streams
        self._admission.note_ends(applied.states)
        self._bulletin.tell(
            [streams.pop(each.request_id) if each.finished else streams[each.request_id] for each in applied.states]
        )

    # -- the life of the core --------------------------------------------------------------------------------

    def _handle_life(self, event: LifeEvent) -> None:
        if isinstance(event, EngineDown):
            self._is_down = True
            for request_id, error in self._replay.note_death(event, self._outputs.live()).items():
                self._give_up(request_id, error)
        elif isinstance(event, EngineUp):
            self._go_on(event)
        else:
            self._die(getattr(errors, event.error_type, EngineDeadError)(event.error))

    def _give_up(self, request_id: str, error: str) -> None:
        _log.error("request %s: %s", request_id, error)
        self._outputs.abort(request_id)
        self._streams.pop(request_id).fail(RequestFailedError(error))

    def _go_on(self, up: EngineUp) -> None:
        """Another process has taken over: send it all that has not finished."""
        self._is_down = False
        commands = self._replay.commands(self._outputs.live())
        self._stats.restart(up.stall_s, len(commands))
        for command in commands:
            self._client.send(command)
        self._calls.repeat()
        _log.info(
            "the engine is back after %.2f s; it goes on with %d requests (%d sequences)",
            up.stall_s,
            len(self._streams),
            len(commands),
        )

    def _die(self, error: Exception) -> None:
        """Tell everybody who waits; nothing works from here on."""
        self._death = error if isinstance(error, EngineDeadError) else EngineDeadError(str(error))
        _log.error("the engine is dead, and %d requests with it: %s", len(self._streams), self._death)
        streams, self._streams = self._streams, {}
        for request_id, stream in streams.items():
            self._outputs.abort(request_id)
            stream.fail(EngineDeadError(str(self._death)))
        self._calls.fail(lambda: EngineDeadError(str(self._death)))

    # -- the rest --------------------------------------------------------------------------------------------

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDeadError(str(self._death))

    async def health(self) -> None:
        """Return if requests are taken, now or after a restart; raises EngineDeadError if never again."""
        self._attach()
        self._check_alive()

    async def ready(self) -> None:
        """Return if requests are being computed; raises NotReadyError when they wait, or EngineDeadError."""
        await self.health()
        if self._is_down:
            raise NotReadyError("the engine is being started again")
        stalled_s, limit_s = self._client.stalled_s, self.config.step_timeout_s
        if 0 < limit_s <= stalled_s:
            raise NotReadyError(f"the engine has made no step for {stalled_s:.1f} s")

    def stats(self) -> EngineStats:
        """The numbers after the latest step."""
        return self._stats.latest

    def get_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None with skip_tokenizer_init."""
        return self.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """What a request without sampling parameters gets."""
        return self._inputs.default_params()

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prompts; False while a request holds blocks. Raises EngineDeadError."""
        return bool(await self._call("reset_prefix_cache"))

    async def observe(self, after: int = 0, chosen: Iterable[str] = ()) -> Observation:
        """See `EngineCore.observe`. Raises EngineDeadError."""
        return msgspec.convert(await self._call("observe", after, list(chosen)), Observation)

    async def _call(self, method: str, *arguments: Any) -> Any:
        self._attach()
        self._check_alive()
        return await self._calls.call(method, *arguments)

    async def shutdown(self, drain_timeout_s: float = 0.0) -> None:
        """Refuse new requests, wait up to `drain_timeout_s` for the running
        ones, abort the rest, stop the core.
        """
        deadline = asyncio.get_running_loop().time() + drain_timeout_s
        if self._death is None:
            self._death = EngineDeadError("the engine is shutting down")
        while self._streams and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        for request_id in list(self._streams):
            self._abort(request_id)
        self._client.detach()
        await asyncio.to_thread(self._client.close, _CLOSE_TIMEOUT_S)
