"""The pieces that models are written in. Tensor parallelism, weight loading and quantization live here, not in models."""

from quire.layers.attention import Attention, alibi_slopes
from quire.layers.embedding import LMHead, PositionEmbedding, SegmentPositions, TiedLMHead, VocabEmbedding
from quire.layers.fused import split_groups, split_rows, transpose
from quire.layers.latent import LatentAttention, LatentLinear, LatentQueryLinear, LatentUpProjection
from quire.layers.linear import (
    ColumnLinear,
    ExactLinear,
    GateUpLinear,
    QKVLinear,
    ReplicatedLinear,
    RowLinear,
)
from quire.layers.moe import MoE, Router
from quire.layers.norm import HeadLayerNorms, LayerNorm, RMSNorm
from quire.layers.rotary import RotaryEmbedding, softmax_magnitude
from quire.layers.vision import FullAttention, PatchEmbedding, keep_exact
from quire.ops import sigmoid_gate, soft_cap
from quire.ops.routing import Routing

__all__ = [
    "Attention",
    "ColumnLinear",
    "ExactLinear",
    "FullAttention",
    "GateUpLinear",
    "HeadLayerNorms",
    "LMHead",
    "LatentAttention",
    "LatentLinear",
    "LatentQueryLinear",
    "LatentUpProjection",
    "LayerNorm",
    "MoE",
    "PatchEmbedding",
    "PositionEmbedding",
    "QKVLinear",
    "RMSNorm",
    "ReplicatedLinear",
    "RotaryEmbedding",
    "Router",
    "Routing",
    "RowLinear",
    "SegmentPositions",
    "TiedLMHead",
    "VocabEmbedding",
    "alibi_slopes",
    "keep_exact",
    "sigmoid_gate",
    "soft_cap",
    "softmax_magnitude",
    "split_groups",
    "split_rows",
    "transpose",
]
