"""Where a server is, as QUIRE_HOST and OLLAMA_HOST say it: a host, host:port, :port or URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from quire.errors import ConfigError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
_PORTS = {"http": 80, "https": 443}
_ANY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Address:
    """One server."""

    scheme: str
    host: str
    """Without brackets."""
    port: int
    path: str = ""

    @property
    def url(self) -> str:
        """What a client calls; a server on every interface is called on this machine's own."""
        host = _ANY_INTERFACE.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def parse_address(text: str) -> Address:
    """A URL without a port has its scheme's, everything else DEFAULT_PORT. Raises ConfigError."""
    text = text.strip()
    scheme, found, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if found else ("http", text)
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or DEFAULT_HOST, parts.port
    except ValueError:
        host, port = "", None
    if scheme not in _PORTS or not host or any(char.isspace() for char in host):
        raise ConfigError(f"an address must be host, host:port or an http(s) URL, got {text!r}")
    if port is None:
        port = _PORTS[scheme] if found else DEFAULT_PORT
    return Address(scheme, host, port, parts.path.rstrip("/"))
