"""Reads what an http(s) address holds, for a server that strangers can send anywhere (SSRF).

A host must be on the operator's list, all its addresses public, and the connection goes to an address that was checked, not to
the name again; each redirect is checked like the first address. No proxy, cookie or credential of this machine is used.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from quire.errors import InvalidRequestError
from quire.images import addresses

MAX_BYTES = 32 * 2**20
TIME_LIMIT_S = 10.0
"""For one image, redirects included. Resolving a name has the resolver's own limit."""
MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 2**16


def fetch(url: str, domains: Sequence[str], parameter: str) -> bytes:
    """The body at `url`. Raises InvalidRequestError, naming `parameter`, for what is not allowed or cannot be had."""
    deadline = time.monotonic() + TIME_LIMIT_S
    for _ in range(MAX_REDIRECTS + 1):
        parts = _check_url(url, domains, parameter)
        connection = _connect(parts, deadline, parameter)
        try:
            found = _get(connection, parts, deadline, parameter)
        finally:
            connection.release()
        if isinstance(found, bytes):
            return found
        url = _redirected(url, found, parameter)
    raise _refuse(parameter, f"redirects more than {MAX_REDIRECTS} times")


def _check_url(url: str, domains: Sequence[str], parameter: str) -> SplitResult:
    """The parts of an address whose host is on the list."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        is_http = parts.scheme in _PORTS
        host = host.encode("idna").decode("ascii").rstrip(".").lower() if host else ""
    except ValueError:
        raise _refuse(parameter, "is no valid URL") from None
    if not is_http or not host or parts.username is not None or parts.password is not None:
        raise _refuse(parameter, "must be an http(s) URL with a host and without user name or password")
    if not any(_matches(host, domain.lower()) for domain in domains):
        allowed = f"this server reads from {', '.join(domains)}" if domains else "this server reads no http(s) addresses"
        raise _refuse(parameter, f"names the host {host}, which is not allowed: {allowed} (--allowed-media-domains)")
    host = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}")


def _redirected(url: str, location: str, parameter: str) -> str:
    try:
        target = urljoin(url, location)
        is_downgrade = url.lower().startswith("https:") and urlsplit(target).scheme != "https"
    except ValueError:
        raise _refuse(parameter, "redirects to no valid URL") from None
    if is_downgrade:
        raise _refuse(parameter, "redirects from https to another scheme")
    return target


def _matches(host: str, domain: str) -> bool:
    """`example.com` is itself alone, `*.example.com` all below it, `*` everything."""
    if domain == "*":
        return True
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain


class _Connection(http.client.HTTPConnection):
    """To an address that was checked, whatever the name resolves to by now."""

    def __init__(self, parts: SplitResult, address: str, timeout: float) -> None:
        self.default_port = _PORTS[parts.scheme]  # type: ignore[misc]  # what the Host header may leave out
        super().__init__(parts.hostname or "", parts.port or self.default_port, timeout=timeout)
        self._address, self._is_tls = address, parts.scheme == "https"
        self.opened: socket.socket | None = None
        """The socket, also when a response has taken it over."""

    def connect(self) -> None:
        """See HTTPConnection. The certificate must be the name's."""
        self.sock = self.opened = socket.create_connection((self._address, self.port), self.timeout)
        if self._is_tls:
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self.opened = wrapped
            wrapped.do_handshake()

    def release(self) -> None:
        """Close the socket, whoever still reads from it. (`close` leaves it to a response that has taken it over.)"""
        self.close()
        descriptor = -1 if self.opened is None else self.opened.detach()
        if descriptor >= 0:
            socket.close(descriptor)


def _connect(parts: SplitResult, deadline: float, parameter: str) -> _Connection:
    host = parts.hostname or ""
    try:
        found = addresses.resolve(host, parts.port or _PORTS[parts.scheme])
    except OSError:
        raise _refuse(parameter, f"names the host {host}, which cannot be resolved") from None
    if not found or not all(addresses.is_public(address) for address in found):
        raise _refuse(parameter, f"names the host {host}, which is not on the public internet")
    return _Connection(parts, found[0], max(0.1, deadline - time.monotonic()))


def _get(connection: _Connection, parts: SplitResult, deadline: float, parameter: str) -> bytes | str:
    """The body, or where it is to be had instead."""
    watch = threading.Timer(max(0.1, deadline - time.monotonic()), _cut, [connection])
    watch.daemon = True
    watch.start()  # a timeout of the socket would start anew with every byte
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "quire"}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location is not None:
            return location
        if response.status != 200:
            raise _refuse(parameter, f"was answered with HTTP status {response.status}")
        return _read(response, deadline, parameter)
    except InvalidRequestError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise _refuse(parameter, f"was not read within {TIME_LIMIT_S:g} s") from None
        raise _refuse(parameter, f"cannot be read: {type(error).__name__}") from None
    finally:
        watch.cancel()


def _read(response: http.client.HTTPResponse, deadline: float, parameter: str) -> bytes:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _refuse(parameter, "was answered with a compressed body")
    body = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        body += chunk
        if time.monotonic() >= deadline:
            raise TimeoutError
        if len(body) > MAX_BYTES:
            raise _refuse(parameter, f"holds more than {MAX_BYTES} bytes")
    if time.monotonic() >= deadline:  # the end may be the cut
        raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)


def _cut(connection: _Connection) -> None:
    if connection.opened is not None:
        try:
            connection.opened.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed already


def _refuse(parameter: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{parameter} {reason}", parameter=parameter)
