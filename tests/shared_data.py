"""Finds the data that lies beside the repository (`../shared/data`), and skips where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


def shared_folder() -> Path | None:
    """The data folder: in or at `QUIRE_SHARED`, else `../shared/data`; None where there is none."""
    stated = os.environ.get("QUIRE_SHARED")
    root = Path(stated) if stated else _REPOSITORY.parent / "shared"
    folder = root / "data" if (root / "data").is_dir() else root
    return folder if folder.is_dir() else None


def shared(name: str) -> Path:
    """Path of `name` in the shared data; skips the test where it does not exist."""
    folder = shared_folder()
    path = folder / name if folder else None
    if path is None or not path.exists():
        pytest.skip(f"needs {name} of the shared data (set QUIRE_SHARED, or put it in ../shared/data)")
    return path


def shared_names(folder: str, pattern: str) -> list[str]:
    """Names of the files in a folder of the shared data, for parametrized tests; empty where it is absent."""
    root = shared_folder()
    return sorted(path.name for path in (root / folder).glob(pattern)) if root else []
