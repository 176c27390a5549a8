"""A connection to an application as `quire serve` has it, without a socket: what the client sends and does, what was written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

import httptools
from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.server import ServerState

from quire.core.request import RequestUpdate
from quire.engine.clients import ONLY_CLIENT, EventGatherer, OnEvents
from quire.engine.messages import AbortRequests, AddRequest, Command, EngineReady, StepOutputs
from quire.engine.stats import EngineStats
from quire.server.connection import PushProtocol
from quire.server.http_limits import ConnectionRules, LimitedProtocol


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = self.is_aborted = False
        self.num_unsent = 0

    def write(self, data: Any) -> None:
        assert not self.is_closed, "a write to a connection that is closed"
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        """There is nothing to read."""

    def resume_reading(self) -> None:
        """There is nothing to read."""


@lru_cache(maxsize=1)
def _load_config(app: Starlette) -> Config:
    config = Config(app, http=PushProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    return config


class RawConnection:
    """One client. It reads everything at once unless told to `pause`."""

    def __init__(self, app: Starlette, rules: ConnectionRules | None = None, state: ServerState | None = None) -> None:
        """`rules` are what `quire serve` adds; `state` is shared with other connections."""
        kind: Any = PushProtocol if rules is None else partial(LimitedProtocol, rules=rules)
        config = _load_config(app)
        self.state = state or ServerState()
        self.protocol = kind(config=config, server_state=self.state, app_state={})
        self.protocol.access_log = False
        self.transport = _Transport()
        self.protocol.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        """Bytes from the client."""
        self.protocol.data_received(data)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> None:
        """A whole request."""
        self.send(render_post(path, body, **headers))

    def pause(self) -> None:
        """The client stops to read, and buffers are full."""
        self.protocol.pause_writing()

    def resume(self) -> None:
        """The client reads on."""
        self.protocol.resume_writing()

    def hang_up(self) -> None:
        """The client closes."""
        self.transport.is_closed = True
        self.protocol.connection_lost(None)

    def status(self) -> int | None:
        """Of the first response; None: there is none yet."""
        return int(self.transport.writes[0][9:12]) if self.transport.writes else None

    def responses(self) -> list[Response]:
        """What was written, parsed; the last may be incomplete."""
        reader = _Reader()
        parser = httptools.HttpResponseParser(reader)
        parser.feed_data(b"".join(self.transport.writes))
        return reader.responses


class Response:
    """One response as far as it came."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.is_complete = False


class _Reader:
    """Callbacks of httptools."""

    def __init__(self) -> None:
        self.responses: list[Response] = []

    def on_message_begin(self) -> None:
        self.responses.append(Response())

    def on_body(self, data: bytes) -> None:
        self.responses[-1].body += data

    def on_message_complete(self) -> None:
        self.responses[-1].is_complete = True


def render_post(path: str, body: dict[str, Any], **headers: str) -> bytes:
    """A POST request; `x_request_id="a"` is the header `x-request-id: a`."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: server", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"content-length: {len(content)}"]).encode() + b"\r\n\r\n" + content


class ScriptedClient:
    """A core that does what the test says, step by step."""

    ready = EngineReady(64, 1000, 4)
    place = ONLY_CLIENT

    def __init__(self) -> None:
        self.added: list[str] = []
        self.aborted: list[str] = []
        self._events = EventGatherer()

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`."""
        self._events.attach(loop, on_events)

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        self._events.detach()

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        if isinstance(command, AddRequest):
            self.added.append(command.request_id)
        elif isinstance(command, AbortRequests):
            self.aborted += command.request_ids

    def close(self, timeout_s: float) -> None:
        """See `CoreClient.close`."""

    def step(
        self,
        token_ids: Iterable[int],
        finish_reason: Any = None,
        request_ids: Iterable[str] | None = None,
        error: str | None = None,
    ) -> None:
        """The same tokens for these requests, or for all that live; `error` goes with the finish reason `error`."""
        live = [request_id for request_id in self.added if request_id not in self.aborted]
        ids = live if request_ids is None else list(request_ids)
        updates = [RequestUpdate(request_id, list(token_ids), finish_reason, error=error) for request_id in ids]
        self._events.put(StepOutputs(updates, EngineStats()))
        if finish_reason is not None:
            self.added = [request_id for request_id in self.added if request_id not in ids]


async def settle(num_turns: int = 10) -> None:
    """Let everything run that can run."""
    for _ in range(num_turns):
        await asyncio.sleep(0)
