"""A web server for tests of fetching: what it answers is decided by the path."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """Listens on 127.0.0.1; `answers` by path, and what was asked."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.answers: dict[str, Answer] = {}
        self.hosts: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.hosts.append(self.headers["Host"])
                with contextlib.suppress(OSError):  # the other side may have had enough
                    web.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]

    def serve(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        """Answer a path with a body. Underscores in the names of headers stand for dashes."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = answer


@contextlib.contextmanager
def running(context: ssl.SSLContext | None = None) -> Iterator[Web]:
    """A server in a thread."""
    web = Web(context)
    thread = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.server.shutdown()
        web.server.server_close()
        thread.join()
