"""Quantization methods: how weights are stored and multiplied, three verbs each. Models never mention them."""

from quire.quant.at_load import QuantizedAtLoad
from quire.quant.base import Loadable, Quantizable, QuantMethod, Slot, WeightShard, row_pieces, share_of
from quire.quant.checkpoint import CheckpointFormat, make_checkpoint_format
from quire.quant.encoded import Codes, EncodedWeight
from quire.quant.packing import PackedMethod
from quire.quant.scheme import QuantScheme, make_scheme
from quire.quant.unquantized import Unquantized, UnquantizedPacked

__all__ = [
    "CheckpointFormat",
    "Codes",
    "EncodedWeight",
    "Loadable",
    "PackedMethod",
    "QuantMethod",
    "QuantScheme",
    "Quantizable",
    "QuantizedAtLoad",
    "Slot",
    "Unquantized",
    "UnquantizedPacked",
    "WeightShard",
    "make_checkpoint_format",
    "make_scheme",
    "row_pieces",
    "share_of",
]
