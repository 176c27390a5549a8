"""`quire serve` with TLS, keys in a file, gRPC, and clients that are slow: what only shows with real sockets and uvloop."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import ServerProcess
from tests.server.certificates import Identity, make_identity

TIMEOUT_S = 1.0
BODY = {"prompt": "The capital of France is", "max_tokens": 1}


class Secured:
    """A server and the files that it watches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.write_keys("alice:one\nbob:two\n")
        self.identity = make_identity()
        options = self.identity.write(folder)
        words = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), value)]
        self.process = ServerProcess(
            "--model", "folio", "--api-key-file", str(self.keys), "--timeout-client", str(TIMEOUT_S), *words
        )  # fmt: skip
        self.port = int(self.process.url.rsplit(":", 1)[1])

    def write_keys(self, text: str) -> None:
        """As a tool that writes a file whole or not at all."""
        beside = self.folder / "keys.new"
        beside.write_text(text)
        beside.chmod(0o600)
        os.replace(beside, self.keys)

    def get(self, path: str, key: str = "", identity: Identity | None = None) -> httpx.Response:
        """By a connection of its own."""
        context = (identity or self.identity).client_context()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.get(f"https://127.0.0.1:{self.port}{path}", headers=headers, verify=context, timeout=30)

    def connect(self) -> ssl.SSLSocket:
        """A connection to write what one likes."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return self.identity.client_context().wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    secured = Secured(tmp_path_factory.mktemp("secured"))
    yield secured
    secured.process.kill()


def until(check: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def fails_to_verify(call: Callable[[], Any]) -> bool:
    try:
        call()
    except httpx.ConnectError as error:
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)
        return True
    return False


def test_a_request(secured: Secured) -> None:
    assert secured.process.url.startswith("https://")
    assert secured.get("/health").status_code == 200
    assert secured.get("/v1/models").status_code == 401
    assert secured.get("/v1/models", "one").status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{secured.port}/health", timeout=30)


def test_keys_change_without_a_restart(secured: Secured) -> None:
    assert secured.get("/metrics", "two").status_code == 200
    secured.write_keys("alice:one\nbob:three\n")
    until(lambda: secured.get("/metrics", "three").status_code == 200)
    assert secured.get("/metrics", "two").status_code == 401
    log = "".join(secured.process.log)
    assert "2 keys of 2 tenants" in log and "three" not in log


def test_certificates_change_without_a_restart(secured: Secured) -> None:
    old, new = secured.identity, make_identity()
    assert fails_to_verify(lambda: secured.get("/health", identity=new))
    with secured.connect() as open_before:
        new.write(secured.folder)
        until(lambda: not fails_to_verify(lambda: secured.get("/health", identity=new)))
        assert fails_to_verify(lambda: secured.get("/health", identity=old))
        open_before.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert open_before.recv(4096).startswith(b"HTTP/1.1 200")
    secured.identity = new


def test_slow_clients_are_cut_off(secured: Secured) -> None:
    """One that says nothing, one that never ends its head, one that never ends its body; a byte at a time or none."""
    starts = (
        b"",
        b"G",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: one\r\ncontent-length: 9\r\n\r\n{",
    )
    for start in starts:
        with secured.connect() as client:
            client.sendall(start)
            answer = b""
            try:
                while data := client.recv(4096):
                    answer += data
            except (ConnectionError, ssl.SSLError):
                pass  # cut without a word
            assert answer == b"" or (start == b"G" and answer.startswith(b"HTTP/1.1 408"))
    assert secured.get("/load", "one").json() == {"server_load": 0}


def test_a_head_without_end(secured: Secured) -> None:
    with secured.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ")
        deadline = time.monotonic() + 30
        with pytest.raises((ConnectionError, ssl.SSLError)):
            while time.monotonic() < deadline:
                client.sendall(b"a" * 65_536)
    assert secured.get("/health").status_code == 200


def test_a_page_of_another_origin(folio_server: ServerProcess) -> None:
    """On a server without keys, as it is started on a laptop."""
    url = folio_server.url
    assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=30).status_code == 200
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        answer = httpx.post(f"{url}/v1/completions", json=BODY, headers=headers, timeout=30)
        assert answer.status_code == 403 and "evil.example" in answer.json()["error"]["message"]
