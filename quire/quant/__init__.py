"""Quantization methods: one file each, one object per linear layer with three verbs. Models never mention them."""

from quire.quant.base import QuantMethod, WeightLoader, WeightShard, add_parameter
from quire.quant.unquantized import Unquantized

__all__ = ["QuantMethod", "Unquantized", "WeightLoader", "WeightShard", "add_parameter"]
