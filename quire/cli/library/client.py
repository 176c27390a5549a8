"""Calls to a running server, over Ollama's routes. Standard library alone, so that the commands start at once."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from quire import envs
from quire.cli.address import DEFAULT_HOST, DEFAULT_PORT, Address, parse_address
from quire.errors import ServerCallError


class UnreachableError(ServerCallError):
    """Nothing answers at the address."""


def add_host_argument(parser: argparse.ArgumentParser) -> None:
    """The server's address as an option."""
    parser.add_argument(
        "--host", metavar="ADDRESS", help=f"the server; default: QUIRE_HOST, OLLAMA_HOST, else port {DEFAULT_PORT} here"
    )


def server_of(args: argparse.Namespace) -> Server:
    """The server that the option or the environment names. Raises ConfigError."""
    given = args.host or envs.host()
    return Server(Address("http", DEFAULT_HOST, DEFAULT_PORT) if given is None else parse_address(given))


class Server:
    """One server. Every call raises UnreachableError, or ServerCallError with what the server said."""

    def __init__(self, address: Address) -> None:
        self.url = address.url

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object."""
        return self._whole("GET", path, None)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """POST a JSON object; {} for an answer without a body."""
        return self._whole("POST", path, body)

    def delete(self, path: str, **body: Any) -> None:
        """DELETE with a JSON object."""
        self._whole("DELETE", path, body)

    def stream(self, path: str, **body: Any) -> Iterator[dict[str, Any]]:
        """POST, and the objects of the answer line by line. An error within is raised."""
        with self._open("POST", path, body) as response:
            for line in response:
                event = json.loads(line)
                if "error" in event:
                    raise ServerCallError(event["error"])
                yield event

    def _whole(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with self._open(method, path, body) as response:
            content = response.read()
        try:
            answer = json.loads(content) if content else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerCallError(f"what answers at {self.url} is not a server of Quire or Ollama")
        return answer

    def _open(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        keys = envs.API_KEY.read()
        if keys:
            headers["Authorization"] = f"Bearer {keys[0]}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            return urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            raise ServerCallError(_message(error)) from None
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UnreachableError(
                f"no server answers at {self.url} ({getattr(reason, 'strerror', None) or reason}): "
                "start one with `quire serve --models-dir DIR`, or name another in QUIRE_HOST"
            ) from None


def _message(error: urllib.error.HTTPError) -> str:
    with error:
        content = error.read()
    try:
        told = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"
    return told if isinstance(told, str) else str(told.get("message", told))
