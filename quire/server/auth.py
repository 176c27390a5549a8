"""API keys: where the server has any, a request must bring one, as `Authorization: Bearer KEY` or `x-api-key: KEY`.

Keys are kept as hashes under a secret of this process, and every one of them is compared in constant time: neither the answer nor
the time that it takes tells anything about a key. Which routes ask for one is said by the routes (`Route.is_open`).
"""

from __future__ import annotations

import hmac
import re
import secrets
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from starlette.requests import HTTPConnection

from quire import envs
from quire.errors import ConfigError, WrongApiKeyError
from quire.log import get_logger
from quire.server.args import ServerArgs
from quire.server.watched_files import LOOK_EVERY_S, FileWatch

MAX_FILE_BYTES = 2**20
"""Largest file of keys."""

_KEY = re.compile(r"[!-~]{1,512}")
_NAMED = re.compile(r"(?:([A-Za-z0-9._-]{1,64}):)?(.*)")
_KEY_RULE = "1 to 512 printable ASCII characters without blanks"
_TENANT = "quire.tenant"
"""Where the scope of a request has its tenant."""

_log = get_logger(__name__)


def tenant_of(request: HTTPConnection) -> str:
    """Who a request comes from, as 16 hex digits that say nothing about the key; "" where the server has no keys."""
    tenant: str = request.scope.get(_TENANT, "")
    return tenant


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as the operator wrote it."""

    key: str = field(repr=False)
    name: str = ""
    """Keys of one name are one tenant, so that a key can be replaced; a key without a name is a tenant of its own."""

    @property
    def tenant(self) -> str:
        """16 hex digits, the same in every process."""
        text, kind = (self.name, b"name") if self.name else (self.key, b"")
        return blake2b(text.encode(), digest_size=8, person=kind).hexdigest()


class ApiKeys:
    """All keys of a server; false where there are none, and then everybody is let in as the tenant "".

    A file of keys is read again when it changes. A server that began with keys never ends without.
    """

    def __init__(self, keys: Iterable[ApiKey] = (), file: str | None = None) -> None:
        """`keys` beside those in `file`. Raises ConfigError for a file that is none of keys."""
        self._secret = secrets.token_bytes(32)
        self._given = self._hash_keys(keys)
        self.has_tenants = file is not None or len({tenant for _, tenant in self._given}) > 1
        """Whether requests may come from several; a file that has the keys of one may get others."""
        self._file = file
        self._watch = FileWatch(() if file is None else (file,))
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self._entries = self._read()

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def num_tenants(self) -> int:
        """How many there are; one where there are no keys."""
        return max(1, len({tenant for _, tenant in self._entries}))

    def tenant(self, authorization: str, x_api_key: str) -> str:
        """The tenant whose key one of the two headers brings. Raises WrongApiKeyError if neither does."""
        if not self._entries:
            return ""
        self._look_at_file()
        scheme, _, token = authorization.partition(" ")
        found = [self._find(token.strip() if scheme.lower() == "bearer" else ""), self._find(x_api_key)]
        for tenant in found:
            if tenant is not None:
                return tenant
        raise WrongApiKeyError("This server asks for an API key: send it as 'Authorization: Bearer KEY'")

    def _find(self, given: str) -> str | None:
        digest, found = self._hash(given), None
        for known, tenant in self._entries:  # all of them, whichever it is
            if hmac.compare_digest(digest, known):
                found = tenant
        return found

    def _hash(self, key: str) -> bytes:
        return blake2b(key.encode(), key=self._secret, digest_size=32).digest()

    def _hash_keys(self, keys: Iterable[ApiKey]) -> tuple[tuple[bytes, str], ...]:
        return tuple((self._hash(key.key), key.tenant) for key in keys)

    def _read(self) -> tuple[tuple[bytes, str], ...]:
        """(hash, tenant) of every key."""
        return self._given + (() if self._file is None else self._hash_keys(read_key_file(self._file)))

    def _look_at_file(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY_S
        if not self._watch.has_changed():
            return
        try:
            self._entries = self._read()
        except ConfigError as error:
            _log.error("the API keys stay as they are: %s", error)
        else:
            _log.info("API keys read again: %d keys of %d tenants", len(self._entries), self.num_tenants)


def api_keys(args: ServerArgs) -> ApiKeys:
    """The keys that open this server: of its options, or else of the environment.

    Raises ConfigError for one that no header can carry, and for a file that cannot be used.
    """
    given = args.api_key
    source = "api_key"
    if given is None and args.api_key_file is None:
        variable = next((one for one in (envs.API_KEY, envs.VLLM_API_KEY) if one.read()), envs.API_KEY)
        given, source = variable.read(), variable.name
    return ApiKeys(as_keys(given, source), args.api_key_file)


def as_keys(given: str | list[str] | None, source: str) -> list[ApiKey]:
    """The keys of an option or a variable, whose name is `source`; raises ConfigError for one that no header can carry."""
    keys = [given] if isinstance(given, str) else given or []
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ConfigError(f"{source} must be {_KEY_RULE}, got one of {len(key)} characters that is not")
    return [ApiKey(key) for key in keys]


def check_api_key(keys: ApiKeys, request: HTTPConnection) -> None:
    """Raises WrongApiKeyError unless the request brings one of the keys; notes whose it is for `tenant_of`."""
    if keys:
        headers = request.headers
        request.scope[_TENANT] = keys.tenant(headers.get("authorization", ""), headers.get("x-api-key", ""))


def read_key_file(path: str) -> tuple[ApiKey, ...]:
    """The keys in a file: a `KEY` or `NAME:KEY` a line, without blank lines and those that begin with `#`.

    Raises ConfigError that names the line, never the key; for a file without any key too.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
            is_public = bool(stat.S_IMODE(Path(path).stat().st_mode) & stat.S_IROTH)
    except OSError as error:
        raise ConfigError(f"api_key_file must be a file, got {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"api_key_file must be a file of at most {MAX_FILE_BYTES} bytes, got {path}")
    lines = enumerate(data.decode(errors="replace").splitlines(), start=1)
    keys = tuple(
        _parse_line(line.strip(), f"{path} line {number}") for number, line in lines if _has_key(line)
    )
    if not keys:
        raise ConfigError(f"api_key_file must hold at least one key, got {path} without any")
    _check_owners(keys, path)
    if is_public:
        _log.warning("every user of this machine can read the API keys in %s: chmod o-r it", path)
    return keys


def _has_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse_line(line: str, where: str) -> ApiKey:
    match = _NAMED.fullmatch(line)
    if match is None or not _KEY.fullmatch(match[2]) or (match[1] is None and ":" in line):
        raise ConfigError(
            f"api_key_file must have KEY or NAME:KEY on each line, a key being {_KEY_RULE} (one with a colon needs a name), "
            f"which {where} is not"
        )
    return ApiKey(match[2], match[1] or "")


def _check_owners(keys: Iterable[ApiKey], path: str) -> None:
    names: dict[str, str] = {}
    for key in keys:
        if names.setdefault(key.key, key.name) != key.name:
            raise ConfigError(
                f"api_key_file must give each key one name, but one key in {path} has two: "
                f"{names[key.key] or 'none'} and {key.name or 'none'}"
            )
