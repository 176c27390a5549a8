"""The pieces that models are written in. Tensor parallelism, weight loading and quantization live here, not in models."""

from quire.layers.attention import Attention, alibi_slopes
from quire.layers.embedding import LMHead, PositionEmbedding, TiedLMHead, VocabEmbedding
from quire.layers.fused import split_groups, split_rows, transpose
from quire.layers.linear import ColumnLinear, GateUpLinear, QKVLinear, RowLinear
from quire.layers.norm import HeadLayerNorms, LayerNorm, RMSNorm
from quire.layers.rotary import RotaryEmbedding
from quire.layers.vision import FullAttention, PatchEmbedding, keep_exact
from quire.ops import soft_cap

__all__ = [
    "Attention",
    "ColumnLinear",
    "FullAttention",
    "GateUpLinear",
    "HeadLayerNorms",
    "LMHead",
    "LayerNorm",
    "PatchEmbedding",
    "PositionEmbedding",
    "QKVLinear",
    "RMSNorm",
    "RotaryEmbedding",
    "RowLinear",
    "TiedLMHead",
    "VocabEmbedding",
    "alibi_slopes",
    "keep_exact",
    "soft_cap",
    "split_groups",
    "split_rows",
    "transpose",
]
