"""Certificates for tests, each signed by an authority of its own, and handshakes without a socket."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Identity:
    """A certificate in files, and who vouches for it."""

    authority: trustme.CA
    certificate: trustme.LeafCert

    def write(self, folder: Path) -> dict[str, str]:
        """Write key and certificate, in place of those that are there; returns the options that name them."""
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        self.certificate.private_key_pem.write_to_path(key)
        certificate.write_bytes(b"".join(blob.bytes() for blob in self.certificate.cert_chain_pems))
        return {"ssl_keyfile": str(key), "ssl_certfile": str(certificate)}

    def client_context(self) -> ssl.SSLContext:
        """Of a client that trusts this authority only."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


def make_identity() -> Identity:
    """A new one for this machine's own names."""
    authority = trustme.CA()
    return Identity(authority, authority.issue_cert(*NAMES))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> ssl.SSLObject:
    """The client's end of a connection. Raises SSLError of whoever refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=name),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    for end in ends:
        assert end.version() is not None
    return ends[1]
