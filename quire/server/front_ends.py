"""Several front ends over one engine: starts them, watches them, and passes the order to stop on.

Each is a process of its own (`front_end.py`) with its own socket on the same port and its own requests. Their metrics meet in
files of one folder, so that `/metrics` of any of them tells of all (prometheus_client's multiprocess mode). One that dies costs
the requests that it had, and nobody else's; the rest goes on, and the last one's death ends the server. One that has drained
stays, and answers newcomers, until all have.
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
from dataclasses import asdict
from functools import partial
from types import FrameType

from quire import envs
from quire.config.types import EngineConfig
from quire.engine.messages import ForgetClient
from quire.engine.process_client import ProcessClient, child_environment, give, how_it_ended
from quire.engine.text import load_text_side
from quire.errors import EngineDeadError, QuireError
from quire.log import get_logger
from quire.server.args import ServerArgs
from quire.server.front_end import DRAINED, EXIT, STOP, FrontEndOrder
from quire.server.http_server import SIGNALS, say

_log = get_logger(__name__)

_CLOSE_TIMEOUT_S = 5.0


class FrontEnd:
    """One of the processes, seen from the parent."""

    def __init__(self, client: ProcessClient, order: FrontEndOrder) -> None:
        metrics = client.folder / "metrics"
        metrics.mkdir(exist_ok=True)
        self.index = order.index
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quire.server.front_end"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[order.alive_fd, order.listener_fd],
            env={**child_environment(), envs.PROMETHEUS_MULTIPROC_DIR.name: str(metrics)},
        )
        give(self._process, order)

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

    def order(self, order: bytes) -> None:
        """Give one of the orders of `front_end.py`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(order)
            self._process.stdin.flush()

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
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def run_front_ends(config: EngineConfig, args: ServerArgs, listeners: Sequence[socket.socket]) -> None:
    """Serve one engine with a front end per listener, until told to stop. Raises what keeps it from starting, and
    EngineDeadError when no front end is left.
    """
    load_text_side(config)  # before the model: a missing tokenizer is said at once
    client = ProcessClient(config, num_clients=len(listeners) + 1)
    front_ends: list[FrontEnd] = []
    try:
        for index, listener in enumerate(listeners, start=1):
            order = FrontEndOrder(
                config=config,
                server_args=asdict(args),
                folder=str(client.folder),
                index=index,
                num_clients=len(listeners) + 1,
                ready=client.ready,
                alive_fd=client.alive_fd,
                listener_fd=listener.fileno(),
            )
            front_ends.append(FrontEnd(client, order))
        banners = [front_end.wait_ready() for front_end in front_ends]
        for listener in listeners:
            listener.close()  # or the kernel would give connections to a socket that a dead front end left
        Supervisor(client, front_ends).run(banners[0])
    finally:
        for front_end in front_ends:
            front_end.close()
        client.close(_CLOSE_TIMEOUT_S)


class Supervisor:
    """Waits for signals and for the ends of front ends."""

    def __init__(self, client: ProcessClient, front_ends: Sequence[FrontEnd]) -> None:
        self._client = client
        self._live = {front_end.index: front_end for front_end in front_ends}
        self._busy = set(self._live)
        """Indexes of those that have not drained."""
        self._news: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        """What to do about what has happened, for the main thread."""
        self._num_signals = 0

    def run(self, banner: str) -> None:
        """Until no front end is left."""
        self._client.watch(self._hear)
        for front_end in self._live.values():
            threading.Thread(target=self._watch, args=(front_end,), daemon=True).start()
        with self._taking_signals():
            say(banner)
            while self._live:
                self._news.get()()
        if not self._num_signals:
            raise EngineDeadError("no front end is left")

    def _stop(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            say("Stopping: running requests may finish (Ctrl-C again stops at once)")
        self._order_all(STOP)

    def _order_all(self, order: bytes) -> None:
        for front_end in self._live.values():
            front_end.order(order)

    def _note_drained(self, front_end: FrontEnd) -> None:
        self._busy.discard(front_end.index)
        if self._num_signals and not self._busy:
            self._order_all(EXIT)

    def _note_end(self, ended: FrontEnd) -> None:
        del self._live[ended.index]
        self._client.send(ForgetClient(ended.index))
        self._note_drained(ended)
        if not self._num_signals:
            _log.error(
                "front end %d (process %d) %s, and its requests with it; %d serve on",
                ended.index,
                ended.pid,
                ended.describe_end(),
                len(self._live),
            )

    def _watch(self, front_end: FrontEnd) -> None:
        front_end.wait(lambda: self._news.put(partial(self._note_drained, front_end)))
        self._news.put(partial(self._note_end, front_end))

    def _hear(self, how_it_ended: str) -> None:
        """The front ends hear of the engine's death by themselves, and answer accordingly."""
        _log.error("the engine is dead: %s", how_it_ended)

    @contextlib.contextmanager
    def _taking_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._news.put(self._stop)  # SimpleQueue.put may be called from a signal handler
