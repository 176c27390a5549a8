"""Where the shared test data is; tests that need it skip with a reason where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(relative_path: str) -> Path:
    """A file or folder of the shared data ($QUIRE_SHARED, else ../shared/data beside the repository), or skip."""
    root = os.environ.get("QUIRE_SHARED")
    repository = Path(__file__).resolve().parents[1]
    folders = [Path(root)] if root else [repository.parent / "shared" / "data"]
    for folder in folders:
        if (folder / relative_path).exists():
            return folder / relative_path
    pytest.skip(f"shared data {relative_path} is not in {folders[0]} (set QUIRE_SHARED)")
