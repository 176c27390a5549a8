"""`FileWatch`: whether files that the operator may replace (keys, certificates) have changed since they were last read."""

from __future__ import annotations

import os
from collections.abc import Iterable

LOOK_EVERY_S = 1.0
"""How often who holds a watch asks it."""

_Stamp = tuple[tuple[int, int, int] | None, ...]


class FileWatch:
    """Follows links, so that it sees what Kubernetes does to a mounted secret: a link that points elsewhere."""

    def __init__(self, paths: Iterable[str]) -> None:
        """To be made before the files are read: a change in between is then seen as one."""
        self._paths = tuple(paths)
        self._seen = self._stamp()

    def has_changed(self) -> bool:
        """Whether any file is another one than at the question before; a file that is gone has changed too."""
        before, self._seen = self._seen, self._stamp()
        return self._seen != before

    def _stamp(self) -> _Stamp:
        return tuple(_stamp_of(path) for path in self._paths)


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
