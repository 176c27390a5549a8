"""What one quantization tool writes: a checkpoint format names the tensors that make up a weight and decodes them.

A format is one file in this folder and one line in `quire.config.quantization.CHECKPOINT_FORMATS`. Which layers are quantized is
seen from their tensors: a layer whose plain weight is in the checkpoint is loaded as from any other.
"""

from __future__ import annotations

import importlib
from typing import ClassVar

from torch import Tensor

from quire.config.fields import Fields
from quire.config.quantization import CHECKPOINT_FORMATS
from quire.config.types import ModelConfig
from quire.quant.encoded import EncodedWeight


class CheckpointFormat:
    """One tool's way to write weights, with the settings of one checkpoint."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """The last words of tensor names that stand for a weight together: `layer.qweight` and `layer.scales` are `layer.weight`."""

    def __init__(self, settings: Fields, activation_group: int) -> None:
        """Raises ModelLoadError for settings that cannot be read.

        `activation_group`: inputs that share an activation scale where a product is computed in integers; see `WeightFormat`.
        """

    def role_of(self, name: str, tensor: Tensor) -> tuple[str, str] | None:
        """The weight that a tensor is part of, and as what; None for a tensor that stands for itself."""
        layer, _, word = name.rpartition(".")
        return (f"{layer}.weight", word) if word in self.suffixes else None

    def decode(self, name: str, tensors: dict[str, Tensor]) -> EncodedWeight | Tensor:
        """The weight `name` from its tensors by role; a tensor if it is not quantized. ValueError: they do not fit together."""
        raise NotImplementedError

    def is_needless(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor that the architecture has no place for may be passed over."""
        return False


def make_checkpoint_format(config: ModelConfig) -> CheckpointFormat | None:
    """The format of a model's checkpoint, or None where its weights are floats."""
    found = config.hf.quantization
    if found is None:
        return None
    module, _, name = CHECKPOINT_FORMATS[found.method].partition(":")
    format_class: type[CheckpointFormat] = getattr(importlib.import_module(module), name)
    return format_class(found.fields, config.quantization_activation_group)
