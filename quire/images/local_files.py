"""Reads file:// addresses, below one folder that the operator named."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from quire.errors import InvalidRequestError
from quire.images.fetch import MAX_BYTES


def read_local(url: str, folder: str | None, parameter: str) -> bytes:
    """The file that a file:// URL names. Raises InvalidRequestError, naming `parameter`, unless it lies below `folder`.

    Links are followed before that is decided; nothing is told of files elsewhere, not even whether they exist.
    """
    if folder is None:
        raise _refuse(parameter, "is a file:// URL, which this server does not read (--allowed-local-media-path)")
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path)).resolve()
    except (ValueError, OSError, RuntimeError):
        raise _refuse(parameter, "is no valid file:// URL") from None
    root = Path(folder).resolve()
    if parts.netloc not in ("", "localhost") or root not in path.parents:
        raise _refuse(parameter, "must name a file below the folder that --allowed-local-media-path gives")
    try:
        return _read(path, parameter)
    except OSError as error:
        raise _refuse(parameter, f"names a file that cannot be read: {error.strerror}") from None


def _read(path: Path, parameter: str) -> bytes:
    # Not a link any more, and without waiting for the other end should it be a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _refuse(parameter, "must name a file, not a folder or a device")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _refuse(parameter, f"names a file of more than {MAX_BYTES} bytes")
    return data


def _refuse(parameter: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{parameter} {reason}", parameter=parameter)
