"""`ModelRegistry` under vLLM's module path. The registry itself is `quire/models`."""

from quire.models import ModelRegistry

__all__ = ["ModelRegistry"]
