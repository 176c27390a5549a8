"""Which quantization method each layer of a model gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.config.types import ModelConfig
from quire.ops.weights import WeightFormat
from quire.quant.at_load import QuantizedAtLoad
from quire.quant.base import QuantMethod, WeightShard
from quire.quant.unquantized import Unquantized


@dataclass(frozen=True)
class QuantScheme:
    """One method for linear layers, one for token embeddings and the output head."""

    linear: QuantMethod
    embedding: QuantMethod

    def method_for(self, shard: WeightShard) -> QuantMethod:
        """The method that stores this weight."""
        return self.embedding if shard.is_embedding else self.linear


def make_scheme(config: ModelConfig) -> QuantScheme:
    """The scheme that a model's options describe."""
    names = {"linear": config.quantization, "embedding": config.embedding_quantization}
    return QuantScheme(**{layer: _make_method(name, config) for layer, name in names.items()})


def _make_method(name: str | None, config: ModelConfig) -> QuantMethod:
    if name is None:
        return Unquantized(getattr(torch, config.dtype))
    group_size = config.quantization_group_size if name == "int4" else 0
    return QuantizedAtLoad(WeightFormat(name, group_size, config.quantization_activation_group))
