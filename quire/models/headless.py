"""Decoders whose checkpoint ends with the last norm (`Qwen3Model` and its like): embedding models are stored so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from quire.config.types import HFConfig


def without_head(model_class: type[Any]) -> type[nn.Module]:
    """`model_class` for a checkpoint without an output head, whose names lack the prefix `model.`."""

    class Headless(model_class):  # type: ignore[misc]
        """The head that the class has is the embedding's own weight, and takes none from the checkpoint."""

        def __init__(self, config: HFConfig) -> None:
            super().__init__(replace(config, tie_word_embeddings=True))

        @staticmethod
        def rename(name: str) -> str:
            """The name that the whole model's checkpoint would have."""
            return name if name.startswith("model.") else f"model.{name}"

    Headless.__name__ = f"Headless{model_class.__name__}"
    return Headless
