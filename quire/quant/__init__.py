"""Quantization methods: how weights are stored and multiplied, three verbs each. Models never mention them."""

from quire.quant.at_load import QuantizedAtLoad
from quire.quant.base import Loadable, Quantizable, QuantMethod, Slot, WeightShard, share_of
from quire.quant.scheme import QuantScheme, make_scheme
from quire.quant.unquantized import Unquantized

__all__ = [
    "Loadable",
    "QuantMethod",
    "QuantScheme",
    "Quantizable",
    "QuantizedAtLoad",
    "Slot",
    "Unquantized",
    "WeightShard",
    "make_scheme",
    "share_of",
]
