"""Which quantization method each layer of a model gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from quire.config.types import ModelConfig
from quire.ops.weights import FormatName, WeightFormat
from quire.quant.at_load import QuantizedAtLoad
from quire.quant.base import QuantMethod, WeightShard
from quire.quant.unquantized import Unquantized, UnquantizedPacked


@dataclass(frozen=True)
class QuantScheme:
    """One method for linear layers, one for token embeddings and the output head, one for what is not to be rounded."""

    linear: QuantMethod
    embedding: QuantMethod
    exact: QuantMethod

    def method_for(self, shard: WeightShard) -> QuantMethod:
        """The method that stores this weight."""
        if shard.is_exact:
            return self.exact
        return self.embedding if shard.is_embedding else self.linear


def make_scheme(config: ModelConfig, device: torch.device) -> QuantScheme:
    """The scheme that a model's options describe."""
    return QuantScheme(
        linear=_make_method(config.quantization, config, device),
        embedding=_make_method(config.embedding_quantization, config, device),
        exact=_make_method(None, config, device),
    )


def _make_method(name: str | None, config: ModelConfig, device: torch.device) -> QuantMethod:
    if name is None:
        dtype = getattr(torch, config.dtype)
        return UnquantizedPacked(dtype) if device.type == "cpu" else Unquantized(dtype)
    if name == "fp8":
        return QuantizedAtLoad(WeightFormat("float8"))
    group_size = config.quantization_group_size if name == "int4" else 0
    return QuantizedAtLoad(WeightFormat(cast(FormatName, name), group_size, config.quantization_activation_group))
