"""`EngineSupervisor`: keeps one engine running, whatever becomes of its process.

A thread waits for the end of the process, ends one that hangs, starts the next one from the same configuration, and tells those
who listen. It knows no requests: each client sends its own again (`replay.py`).
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from quire import envs
from quire.config.types import EngineConfig
from quire.engine.core_sockets import EVENTS
from quire.engine.engine_process import EngineProcess
from quire.engine.messages import EngineDied, EngineDown, EngineReady, EngineUp, LifeEvent
from quire.errors import ConfigError, QuireError
from quire.log import get_logger

_log = get_logger(__name__)

OnLifeEvent = Callable[[LifeEvent], None]
"""Called in the supervisor's thread, or in that which subscribes; must return soon and not raise."""

_MAX_SOCKET_PATH = 100
"""Unix socket paths end at 107 bytes."""
_LONGEST_SOCKET = f"99999/{EVENTS.format(999)}"
_LONG_LIFE_S = 10.0
"""A process that served for so long worked, even if nobody asked it for a step."""
_MAX_PAUSE_S = 2.0


@dataclass(slots=True)
class Patience:
    """When to give up an engine that does not come to work again: after many attempts in a row and a long time."""

    max_failures: int = 5
    min_s: float = 300.0
    num_failures: int = 0
    """Processes in a row that ended at their start or before their first step."""
    since: float = 0.0
    """When the first of those ended, by the monotonic clock."""

    def renew(self) -> None:
        """A process has worked."""
        self.num_failures = 0

    def fail(self, now: float) -> None:
        """A process has not worked."""
        if self.num_failures == 0:
            self.since = now
        self.num_failures += 1

    def is_over(self, now: float) -> bool:
        """Whether to give up."""
        return self.num_failures >= self.max_failures and now - self.since >= self.min_s

    @property
    def pause_s(self) -> float:
        """How long to wait before the next attempt; nothing before the first."""
        return min(_MAX_PAUSE_S, 0.05 * 2**self.num_failures) if self.num_failures else 0.0


class EngineSupervisor:
    """The engine's processes, one after another, in one private folder."""

    def __init__(self, config: EngineConfig, num_clients: int = 1, patience: Patience | None = None) -> None:
        """Start the first process and wait until it is ready. Raises what stopped it, or EngineDeadError."""
        self.folder = _private_folder()
        self._config = config
        self._num_clients = num_clients
        self._patience = Patience() if patience is None else patience
        self._listeners: list[OnLifeEvent] = []
        self._lock = threading.Lock()
        """Guards `_latest` with the listeners, and the start of a process against the end of all."""
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quire-supervisor", daemon=True)
        self._epoch = 0
        self._latest: LifeEvent = EngineDown("the engine process is being started", False, [])
        self._process = EngineProcess(self.folder, 0, config, num_clients)
        self._ready_at = 0.0
        try:
            ready = self._process.wait_ready()
        except BaseException:
            self.close(0.0)
            raise
        self._config = _with_cache_of(config, ready)
        self.first = self._up(ready)
        """The first process."""
        self._latest = self.first
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the engine now."""
        return self._process.pid

    def subscribe(self, listen: OnLifeEvent) -> None:
        """Tell `listen` at once what the engine is now, and then whatever changes."""
        with self._lock:
            listen(self._latest)
            self._listeners.append(listen)

    def expect_the_end(self) -> None:
        """From here on the end of the process is no news."""
        self._is_closing.set()

    def close(self, timeout_s: float) -> None:
        """No process and no folder any more; one that was told to stop gets `timeout_s` seconds for it. Idempotent."""
        self.expect_the_end()
        with self._lock:
            process = self._process
            was_told = isinstance(self._latest, EngineUp)
        process.end(timeout_s if was_told else 0.0)
        if self._thread is not threading.current_thread():
            if self._thread.is_alive():
                self._thread.join()
            process.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            end = self._process.wait(self._config.step_timeout_s)
            if self._is_closing.is_set():
                break
            died_at = time.monotonic()
            _log.error("%s; starting it again", end.reason)
            self._judge_life(died_at)
            board = self._process.board
            self._tell(EngineDown(end.reason, end.is_own_fault, board.held(), board.suspect))
            ready = self._start_again(end.reason)
            if ready is None:
                break
            self._tell(self._up(ready, time.monotonic() - died_at))
        self._process.close()

    def _judge_life(self, now: float) -> None:
        if self._process.board.num_steps or now - self._ready_at >= _LONG_LIFE_S:
            self._patience.renew()
        else:
            self._patience.fail(now)

    def _start_again(self, reason: str) -> EngineReady | None:
        """Start processes until one is ready. None: the engine is to end, or there is no point any more."""
        while not self._is_closing.wait(self._patience.pause_s):
            if self._patience.is_over(time.monotonic()):
                self._give_up(reason)
                return None
            try:
                if not self._replace_process():
                    return None
                return self._process.wait_ready()
            except (QuireError, OSError) as error:
                if not self._is_closing.is_set():
                    reason = str(error)
                    self._patience.fail(time.monotonic())
                    _log.error("the engine process did not start again: %s", reason)
        return None

    def _replace_process(self) -> bool:
        """Start the next process, unless the engine is to end."""
        with self._lock:
            if self._is_closing.is_set():
                return False
            self._process.end(0.0)
            self._epoch += 1
            process = EngineProcess(self.folder, self._epoch, self._config, self._num_clients)
            self._process.close()
            self._process = process
            return True

    def _give_up(self, reason: str) -> None:
        error = (
            f"the engine ended {self._patience.num_failures} times in a row without a step and is not started again; "
            f"the last time: {reason}"
        )
        self._tell(EngineDied(error))

    def _up(self, ready: EngineReady, stall_s: float = 0.0) -> EngineUp:
        self._ready_at = time.monotonic()
        return EngineUp(self._epoch, ready, stall_s)

    def _tell(self, event: LifeEvent) -> None:
        with self._lock:
            self._latest = event
            for listen in self._listeners:
                listen(event)


def _with_cache_of(config: EngineConfig, ready: EngineReady) -> EngineConfig:
    """With the size that the KV cache has now: whatever memory is free then, a later process has the same."""
    cache = replace(config.cache, num_blocks_override=ready.num_blocks, kv_cache_memory_bytes=None)
    return replace(config, cache=cache)


def _private_folder() -> Path:
    """A new folder that only this user can enter, for the sockets."""
    parent = envs.IPC_DIR.read()
    try:
        folder = Path(tempfile.mkdtemp(prefix="quire-", dir=parent))
    except OSError as error:
        where = f"{envs.IPC_DIR.name}={parent}" if parent else tempfile.gettempdir()
        raise ConfigError(
            f"cannot make a folder for sockets in {where}: {error.strerror}; set {envs.IPC_DIR.name} "
            "to a folder that can be written"
        ) from None
    if len(str(folder / _LONGEST_SOCKET)) > _MAX_SOCKET_PATH:
        folder.rmdir()
        raise ConfigError(
            f"the path {folder} is too long for a socket: set {envs.IPC_DIR.name} to a shorter folder"
        )
    return folder
