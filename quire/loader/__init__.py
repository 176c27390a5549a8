"""From a model's name to a model with weights: hub download, checkpoint formats, counting.

`load_model` is imported when it is first asked for: whoever only looks for a model's files needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quire.loader.hub import resolve_model

if TYPE_CHECKING:
    from quire.loader.load import load_model

__all__ = ["load_model", "resolve_model"]


def __getattr__(name: str) -> Any:
    """Import `load_model` on first use (PEP 562)."""
    if name != "load_model":
        raise AttributeError(f"module 'quire.loader' has no attribute {name!r}")
    from quire.loader.load import load_model

    return load_model
