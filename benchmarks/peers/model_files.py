"""Model files made on demand: a file or folder that exists is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make` under another name first if it does not exist; returns it."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name("partial-" + target.name)
    shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
    make(partial)
    partial.rename(target)
    return target
