"""`ServerTls`: the certificates of the server, and those that it asks clients for. TLS 1.2 or newer.

The files may be replaced while the server runs: connections that begin after a change see the new ones. Files that cannot be used
leave the old ones in place, and the log says so.
"""

from __future__ import annotations

import ssl
import time
from pathlib import Path

from quire.errors import ConfigError
from quire.log import get_logger
from quire.server.args import ServerArgs
from quire.server.watched_files import LOOK_EVERY_S, FileWatch

_FILES = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs")

_log = get_logger(__name__)


def check_tls(args: ServerArgs) -> None:
    """Raises ConfigError, before the model is loaded, for TLS files that cannot be used."""
    for name in _FILES:
        path = getattr(args, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{name} must be a file, but there is none at {path}")
    if args.ssl_certfile is None:
        for name in ("ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs"):
            if getattr(args, name):
                raise ConfigError(f"{name} needs ssl_certfile beside it")
        return
    if args.ssl_cert_reqs and args.ssl_ca_certs is None:
        raise ConfigError(f"ssl_cert_reqs={args.ssl_cert_reqs} needs ssl_ca_certs beside it")
    make_context(args)


def make_context(args: ServerArgs) -> ssl.SSLContext:
    """A context with what the files hold now. Raises ConfigError for files that hold something else."""
    assert args.ssl_certfile is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile, password=_refuse_password)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"ssl_certfile and ssl_keyfile must be a PEM certificate and its key, got {reason}"
        ) from None
    if args.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(args.ssl_ca_certs)
        except OSError as error:
            raise ConfigError(
                f"ssl_ca_certs must hold PEM certificates, got {error.strerror or error}"
            ) from None
    context.verify_mode = ssl.VerifyMode(args.ssl_cert_reqs)
    return context


def _refuse_password() -> str:
    """Asked for when the key is encrypted; nobody is there to type it."""
    raise ConfigError("ssl_keyfile must be a key without a password")


class TlsFiles:
    """The files of one server, and whether what they hold has changed for something that can be used."""

    def __init__(self, args: ServerArgs) -> None:
        self._args = args
        self._watch = FileWatch(path for name in _FILES if (path := getattr(args, name)) is not None)
        self._next_look = time.monotonic() + LOOK_EVERY_S

    def changed_context(self) -> ssl.SSLContext | None:
        """A context with the new content where there is one, at most once for each change; looks once a second."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_EVERY_S
        if not self._watch.has_changed():
            return None
        try:
            context = make_context(self._args)
        except ConfigError as error:
            _log.error("the TLS certificate stays as it is: %s", error)
            return None
        _log.info("TLS certificate read again from %s", self._args.ssl_certfile)
        return context


class ServerTls:
    """`context` is what a listener is given for good; each handshake goes on with the newest certificates."""

    def __init__(self, args: ServerArgs) -> None:
        """Raises ConfigError for files that cannot be used."""
        self._files = TlsFiles(args)
        self.context = self._newest = make_context(args)
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        """Called at the beginning of every handshake, with or without a server name in it."""
        self._newest = self._files.changed_context() or self._newest
        connection.context = self._newest
