"""Which backend runs an op: implementations register here, one is chosen per op and device type, and kept.

A backend is a module or package that registers its functions when imported. `reference` (plain torch) has every op;
`cpu` and `triton` come first where their `supports` says yes. There is no choice by data type: a backend that
lacks one hands that call to `implementation(op_name, "reference")` itself.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

PRIORITY = ("cpu", "graph", "triton", "reference")
"""Backends from first choice to last. `graph` records ops on the meta device; it comes with `cpu`."""

_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
_supports: dict[tuple[str, str], Callable[[torch.device], bool]] = {}
_chosen: dict[tuple[str, str], Callable[..., Any]] = {}
_overrides: list[tuple[str | None, str]] = []
_loaded = False


def register(
    op_name: str, backend: str, supports: Callable[[torch.device], bool] = lambda device: True
) -> Callable[[F], F]:
    """Decorator: this function is `backend`'s `op_name` on the devices that `supports` accepts."""
    if backend not in PRIORITY:
        raise ValueError(f"backend must be one of {', '.join(PRIORITY)}, got {backend!r}")

    def add(function: F) -> F:
        _implementations.setdefault(op_name, {})[backend] = function
        _supports[op_name, backend] = supports
        _chosen.clear()
        return function

    return add


def select(op_name: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of `op_name` for `device`; raises LookupError when no backend has it."""
    function = _chosen.get((op_name, device.type))
    if function is None:
        function = implementation(op_name, _choose(op_name, device))
        _chosen[op_name, device.type] = function
    return function


def implementation(op_name: str, backend: str) -> Callable[..., Any]:
    """One backend's function; raises LookupError when that backend does not have the op."""
    _load_backends()
    try:
        return _implementations[op_name][backend]
    except KeyError:
        raise LookupError(f"backend {backend} has no op {op_name}") from None


def backends(op_name: str, device: torch.device) -> list[str]:
    """Backends that can run `op_name` on `device`, first choice first."""
    _load_backends()
    known = _implementations.get(op_name, {})
    return [name for name in PRIORITY if name in known and _supports[op_name, name](device)]


def table(device: torch.device) -> dict[str, str]:
    """Which backend each op uses on `device`, for logs and bug reports."""
    _load_backends()
    return {op_name: _choose(op_name, device) for op_name in sorted(_implementations)}


@contextmanager
def override(op_name: str | None = None, backend: str = "reference") -> Iterator[None]:
    """Within the context one op (None: all that `backend` has) runs on `backend`. For tests: not thread-safe.

    `kv_cache_shape`, `write_kv`, `copy_blocks` and `paged_attention` share a layout: switch all or none; and so do
    `latent_cache_shape`, `write_latent`, `copy_blocks` and `latent_attention`.
    """
    _overrides.append((op_name, backend))
    _chosen.clear()
    try:
        yield
    finally:
        _overrides.pop()
        _chosen.clear()


def _choose(op_name: str, device: torch.device) -> str:
    possible = backends(op_name, device)
    for name, backend in reversed(_overrides):
        if name in (None, op_name) and backend in possible:
            return backend
    if not possible:
        raise LookupError(f"no backend has op {op_name} for device {device}")
    return possible[0]


def _load_backends() -> None:
    """Import each backend that is part of this installation, once."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for name in ("cpu", "triton", "reference"):
        module = f"quire.ops.{name}"
        if importlib.util.find_spec(module) is not None and _can_import(name):
            importlib.import_module(module)


def _can_import(backend: str) -> bool:
    """Whether the packages that a backend is written in are here."""
    if backend != "triton":
        return True
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
