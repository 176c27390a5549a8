"""The pieces that models are written in. Tensor parallelism, weight loading and quantization live here, not in models."""

from quire.layers.attention import Attention
from quire.layers.embedding import LMHead, TiedLMHead, VocabEmbedding
from quire.layers.linear import ColumnLinear, GateUpLinear, QKVLinear, RowLinear
from quire.layers.norm import RMSNorm
from quire.layers.rotary import RotaryEmbedding

__all__ = [
    "Attention",
    "ColumnLinear",
    "GateUpLinear",
    "LMHead",
    "QKVLinear",
    "RMSNorm",
    "RotaryEmbedding",
    "RowLinear",
    "TiedLMHead",
    "VocabEmbedding",
]
