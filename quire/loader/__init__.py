"""From a model's name to a model with weights: hub download, checkpoint formats, counting."""

from quire.loader.hub import resolve_model
from quire.loader.load import load_model

__all__ = ["load_model", "resolve_model"]
