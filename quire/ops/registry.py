"""Which backend runs an op: functions register by (op, backend), one is chosen once per (op, device type)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

PRIORITY = ("triton", "cpu", "reference")
"""Backends, the preferred first."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Entry:
    function: Callable[..., Any]
    supports: Callable[[torch.device], bool]


_entries: dict[str, dict[str, _Entry]] = {}
_chosen: dict[tuple[str, str], tuple[str, Callable[..., Any]]] = {}
_overrides: list[tuple[str | None, str]] = []


def register(
    op_name: str, backend: str, supports: Callable[[torch.device], bool]
) -> Callable[[Function], Function]:
    """Decorator: this function is `backend`'s version of `op_name` on the devices that `supports` accepts."""

    def add(function: Function) -> Function:
        _entries.setdefault(op_name, {})[backend] = _Entry(function, supports)
        _chosen.clear()
        return function

    return add


def select(op_name: str, device: torch.device) -> Callable[..., Any]:
    """The function that runs `op_name` on `device`; LookupError if none can."""
    key = (op_name, device.type)
    if key not in _chosen:
        _chosen[key] = _choose(op_name, device)
    return _chosen[key][1]


def _choose(op_name: str, device: torch.device) -> tuple[str, Callable[..., Any]]:
    entries = _entries.get(op_name, {})
    forced = [backend for name, backend in reversed(_overrides) if name in (None, op_name)]
    for backend in [*forced, *PRIORITY]:
        entry = entries.get(backend)
        if entry is not None and entry.supports(device):
            return backend, entry.function
    raise LookupError(f"no backend runs {op_name} on {device.type}")


@contextmanager
def override(op_name: str | None = None, backend: str = "reference") -> Iterator[None]:
    """Within the block, `op_name` (or every op) runs on `backend` where that has it. For tests."""
    _overrides.append((op_name, backend))
    _chosen.clear()
    try:
        yield
    finally:
        _overrides.pop()
        _chosen.clear()


def table(device: torch.device) -> dict[str, str]:
    """The backend that serves each op on `device`."""
    return {op_name: _choose(op_name, device)[0] for op_name in sorted(_entries)}
