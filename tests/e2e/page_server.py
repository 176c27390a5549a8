"""The server in a thread over an engine of this process, so that a test of the page can compare what both say; the browser."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.clients import ThreadClient
from quire.engine.engine_core import EngineCore
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.connection import PushProtocol
from tests.engine.fakes import FakeExecutor, make_config

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


class PageServer:
    """`url` serves a fake model; `core` is its engine's core, whose numbers hold still between steps."""

    def __init__(self, folder: Path, executor: FakeExecutor, args: ServerArgs, **scheduler: Any) -> None:
        config = make_config(folder, max_model_len=512, **scheduler)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, chat_template=TEMPLATE))
        self.executor = executor
        self.core = EngineCore(config, executor)
        self.engine = AsyncLLMEngine(config, ThreadClient(config, self.core))
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        options: dict[str, Any] = {"http": PushProtocol, "ws": "none", "log_config": None, "log_level": None}
        self._app = build_app(self.engine, args)
        self._server = uvicorn.Server(uvicorn.Config(self._app, timeout_graceful_shutdown=1, **options))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._listener]))
        self._loop.run_until_complete(self.engine.shutdown())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self) -> None:
        """End the server and its engine."""
        self._loop.call_soon_threadsafe(self._app.state.context.lifecycle.stop)  # ends streams that have no end
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()


@contextmanager
def serving(folder: Path, executor: FakeExecutor, args: ServerArgs | None = None, **scheduler: Any) -> Iterator[PageServer]:
    """A `PageServer` for as long as the block lasts."""
    server = PageServer(folder, executor, args or ServerArgs(), **scheduler)
    try:
        yield server
    finally:
        server.stop()
    server.core.scheduler.check_integrity()


@contextmanager
def launched() -> Iterator[Any]:
    """A headless Chromium; skips, saying why, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `test`")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is in PATH (make browser)")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*sandbox, "--disable-gpu"])
        yield browser
        browser.close()


def until(condition: Callable[[], bool], page: Any, timeout_s: float = 30.0) -> None:
    """Let the page live until the condition is true; fails if it does not come true."""
    for _ in range(round(timeout_s / 0.02)):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError("the condition did not come true")
