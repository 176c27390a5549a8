"""Loads the C++ extension, chooses its instruction-set level, and registers its kernels as backend `cpu`.

Without the extension nothing is registered, the reference ops serve every op, and that is said once.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from quire import envs
from quire.errors import ConfigError
from quire.log import get_logger, warn_once

_logger = get_logger(__name__)
_BUILD_INFO = "build_info.json"
_FAMILIES = (
    *("activation", "attention", "latent", "linear", "moe", "norm", "pointwise", "rotary", "sampling"),
    *("recorded", "recorded_latent", "recorded_moe"),
)
"""Modules that register kernels."""


@dataclass(frozen=True)
class Status:
    """Whether the kernels are there, why not, and what they run on."""

    built: bool
    reason: str
    """Why the extension is absent; "" when it is loaded."""
    level: str | None = None
    """The instruction-set level in use."""
    levels: tuple[str, ...] = ()
    """The levels that can run here, lowest first."""
    features: dict[str, bool] = field(default_factory=dict)


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """(the extension, "") or (None, why it is absent)."""
    try:
        return importlib.import_module("quire._cpu"), ""
    except ModuleNotFoundError:
        return None, _why_not_built()
    except ImportError as error:  # built, but for another Python or C library
        return None, f"the built extension cannot be loaded: {error}"


def _why_not_built() -> str:
    """The reason that the build wrote down; without a note, there was no build or its compilation failed."""
    for folder in _own_folders():
        path = folder / _BUILD_INFO
        if path.exists():
            return str(json.loads(path.read_text())["reason"]) or "the extension is missing from this install"
    if _is_installed():
        return "their compilation failed at install time (`pip install -v .` shows the compiler's message)"
    return "this source tree is not installed (`pip install -e .`)"


def _is_installed() -> bool:
    try:
        return bool(importlib.metadata.version("quire"))
    except importlib.metadata.PackageNotFoundError:
        return False


def _own_folders() -> list[Path]:
    """This package's folders: an editable install has the sources in one and what CMake made in another."""
    return [Path(folder) for folder in __path__]


def choose_level(available: list[str], forced: str | None) -> str:
    """The highest level, or the one that QUIRE_CPU_ISA asks for. Raises ConfigError for one that is not here."""
    if forced is None:
        return available[-1]
    if forced not in available:
        raise ConfigError(
            f"QUIRE_CPU_ISA must be one of {', '.join(available)} on this machine, got {forced!r}"
        )
    return forced


@functools.cache
def level() -> str:
    """The instruction-set level that the kernels run at; fixed for the life of the process."""
    extension, reason = load()
    if extension is None:
        raise RuntimeError(f"no instruction-set level without the C++ kernels: {reason}")
    return choose_level(extension.levels(), envs.CPU_ISA.read())


def status() -> Status:
    """What `quire doctor` shows of the extension."""
    extension, reason = load()
    if extension is None:
        return Status(built=False, reason=reason)
    return Status(True, "", level(), tuple(extension.levels()), extension.cpu_features())


def _register() -> None:
    extension, reason = load()
    if extension is None:
        warn_once(_logger, f"C++ kernels are not built; running on the reference ops (slower): {reason}")
        return
    for family in _FAMILIES:
        importlib.import_module(f"quire.ops.cpu.{family}")


_register()
