"""The pieces that models are written in. Tensor parallelism, weight loading and quantization live here, not in models."""

from quire.layers.attention import Attention, alibi_slopes
from quire.layers.embedding import LMHead, PositionEmbedding, TiedLMHead, VocabEmbedding
from quire.layers.fused import split_groups, split_rows, transpose
from quire.layers.linear import ColumnLinear, ExactLinear, GateUpLinear, QKVLinear, RowLinear
from quire.layers.moe import MoE, Router
from quire.layers.norm import HeadLayerNorms, LayerNorm, RMSNorm
from quire.layers.rotary import RotaryEmbedding
from quire.ops import sigmoid_gate, soft_cap
from quire.ops.routing import Routing

__all__ = [
    "Attention",
    "ColumnLinear",
    "ExactLinear",
    "GateUpLinear",
    "HeadLayerNorms",
    "LMHead",
    "LayerNorm",
    "MoE",
    "PositionEmbedding",
    "QKVLinear",
    "RMSNorm",
    "RotaryEmbedding",
    "Router",
    "Routing",
    "RowLinear",
    "TiedLMHead",
    "VocabEmbedding",
    "alibi_slopes",
    "sigmoid_gate",
    "soft_cap",
    "split_groups",
    "split_rows",
    "transpose",
]
