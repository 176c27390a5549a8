"""Several front ends over one engine: starts them, watches them, and passes on what becomes of the engine and the order to stop.

Each is a process of its own (`front_end.py`) with its own socket on the same port and its own requests. Their metrics meet in
files of one folder, so that `/metrics` of any of them tells of all (prometheus_client's multiprocess mode). One that dies costs
the requests that it had, and nobody else's; the rest goes on, and the last one's death ends the server. When the engine's process
dies, each sends its own requests again to the next one. One that has drained stays, and answers newcomers, until all have.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from quire import envs
from quire.config.types import EngineConfig
from quire.engine.clients import ClientPlace
from quire.engine.engine_process import child_environment, give, how_it_ended
from quire.engine.messages import EngineDied, EngineUp, ForgetClient, LifeEvent, Stop
from quire.engine.process_client import AttachedClient
from quire.engine.supervisor import EngineSupervisor
from quire.engine.text import load_text_side
from quire.errors import EngineDeadError, QuireError
from quire.log import get_logger
from quire.server.args import ServerArgs
from quire.server.front_end import DRAINED, EngineNews, ExitOrder, FrontEndOrder, StopOrder
from quire.server.http_server import SIGNALS, say

_log = get_logger(__name__)

_CLOSE_TIMEOUT_S = 5.0


class FrontEnd:
    """One of the processes, seen from the parent."""

    def __init__(self, order: FrontEndOrder) -> None:
        metrics = Path(order.folder) / "metrics"
        metrics.mkdir(exist_ok=True)
        self.index = order.index
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quire.server.front_end"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[order.listener_fd],
            env={**child_environment(), envs.PROMETHEUS_MULTIPROC_DIR.name: str(metrics)},
        )
        self._write_lock = threading.Lock()
        self._say(order)

    def _say(self, message: FrontEndOrder | EngineNews | StopOrder | ExitOrder) -> None:
        assert self._process.stdin is not None
        with self._write_lock:
            if not self._process.stdin.closed:
                give(self._process, message)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_ready(self) -> str:
        """Wait until it listens; returns its banner. Raises QuireError if it ends instead."""
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(2)]
        if not all(lines):
            raise QuireError(f"front end {self.index} {how_it_ended(self._process)}")
        return b"".join(lines).decode().rstrip()

    def stop(self) -> None:
        """Drain; the second time, stop at once."""
        self._say(StopOrder())

    def exit(self) -> None:
        """End, after `stop`."""
        self._say(ExitOrder())

    def tell(self, event: LifeEvent) -> None:
        """What becomes of the engine; called in its supervisor's thread."""
        self._say(EngineNews(event))

    def wait(self, on_drained: Callable[[], None]) -> None:
        """Until it has ended; what it prints meanwhile is passed on."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            on_drained() if text == DRAINED else say(text)
        self._process.wait()

    def describe_end(self) -> str:
        """How it ended."""
        return how_it_ended(self._process)

    def close(self) -> None:
        """Make sure that it is gone."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with self._write_lock, contextlib.suppress(BrokenPipeError):
                stream.close()


def run_front_ends(config: EngineConfig, args: ServerArgs, listeners: Sequence[socket.socket]) -> None:
    """Serve one engine with a front end per listener, until told to stop. Raises what keeps it from starting, and
    EngineDeadError when no front end is left.
    """
    load_text_side(config)  # before the model: a missing tokenizer is said at once
    num_clients = len(listeners) + 1
    engine = EngineSupervisor(config, num_clients)
    front_ends: list[FrontEnd] = []
    try:
        for index, listener in enumerate(listeners, start=1):
            order = FrontEndOrder(
                config=config,
                server_args=asdict(args),
                folder=str(engine.folder),
                index=index,
                num_clients=num_clients,
                listener_fd=listener.fileno(),
            )
            front_ends.append(FrontEnd(order))
            engine.subscribe(front_ends[-1].tell)
        banners = [front_end.wait_ready() for front_end in front_ends]
        for listener in listeners:
            listener.close()  # or the kernel would give connections to a socket that a dead front end left
        supervisor = Supervisor(engine, front_ends)
        supervisor.run(banners[0])
        supervisor.stop_engine()
    finally:
        for front_end in front_ends:
            front_end.close()
        engine.close(_CLOSE_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class _Drained:
    """A front end that was told to stop has no request any more."""

    index: int


class Supervisor:
    """Waits for signals and for the ends of front ends, and lets the engine forget those that ended."""

    def __init__(self, engine: EngineSupervisor, front_ends: Sequence[FrontEnd]) -> None:
        self._engine = engine
        self._place = ClientPlace(0, len(front_ends) + 1)
        self._client: AttachedClient | None = None
        self._live = {front_end.index: front_end for front_end in front_ends}
        self._busy = set(self._live)
        """Indexes of those that have not drained."""
        self._gone = {self._place.index}
        """Clients that the engine need not tell anything: the parent is one."""
        self._news: queue.SimpleQueue[FrontEnd | _Drained | LifeEvent | None] = queue.SimpleQueue()
        """A front end that ended or has drained, what becomes of the engine, or None: a signal came."""
        self._num_signals = 0

    def run(self, banner: str) -> None:
        """Until no front end is left."""
        self._engine.subscribe(self._news.put)
        for front_end in self._live.values():
            threading.Thread(target=self._watch, args=(front_end,), daemon=True).start()
        with self._taking_signals():
            say(banner)
            while self._live:
                self._take(self._news.get())
        if not self._num_signals:
            raise EngineDeadError("no front end is left")

    def stop_engine(self) -> None:
        """Tell the engine to end."""
        self._engine.expect_the_end()
        if self._client is not None:
            self._client.send(Stop())
            self._client.close(_CLOSE_TIMEOUT_S)

    def _take(self, news: FrontEnd | _Drained | LifeEvent | None) -> None:
        if news is None:
            self._stop_all()
        elif isinstance(news, FrontEnd):
            self._bury(news)
        elif isinstance(news, _Drained):
            self._note_drained(news.index)
        elif isinstance(news, EngineUp):
            self._greet(news)
        elif self._client is not None:
            self._client.hear(news)
            if isinstance(news, EngineDied):
                _log.error("the engine is dead: %s", news.error)

    def _stop_all(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            say("Stopping: running requests may finish (Ctrl-C again stops at once)")
        for front_end in self._live.values():
            front_end.stop()

    def _note_drained(self, index: int) -> None:
        self._busy.discard(index)
        if self._num_signals and not self._busy:
            for front_end in self._live.values():
                front_end.exit()

    def _greet(self, up: EngineUp) -> None:
        """A process that knows nothing yet."""
        if self._client is None:
            self._client = AttachedClient(self._engine.folder, self._place, up)
        else:
            self._client.hear(up)
        for index in self._gone:
            self._client.send(ForgetClient(index))

    def _bury(self, front_end: FrontEnd) -> None:
        del self._live[front_end.index]
        self._note_drained(front_end.index)
        self._gone.add(front_end.index)
        if self._client is not None:
            self._client.send(ForgetClient(front_end.index))
        if not self._num_signals:
            _log.error(
                "front end %d (process %d) %s, and its requests with it; %d serve on",
                front_end.index,
                front_end.pid,
                front_end.describe_end(),
                len(self._live),
            )

    def _watch(self, front_end: FrontEnd) -> None:
        front_end.wait(lambda: self._news.put(_Drained(front_end.index)))
        self._news.put(front_end)

    @contextlib.contextmanager
    def _taking_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._news.put(None)  # SimpleQueue.put may be called from a signal handler
