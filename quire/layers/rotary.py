"""Rotary position embedding and its scalings: how far each pair of components turns per position.

The table is a function of the configuration alone, so a cached key never needs to be turned again. "dynamic" therefore
uses the base of the longest context that it promises (max_position * factor) at every length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quire import ops

Scaling = dict[str, Any]


class RotaryEmbedding(nn.Module):
    """Holds cos and sin [max_position, rotary_dim] in float32; one per model, shared by its layers.

    `scaling` is None or a dict with `rope_type` and that type's keys as in the checkpoint's configuration.
    Raises ValueError for an unknown type or a missing key.
    """

    def __init__(self, head_dim: int, max_position: int, base: float, scaling: Scaling | None = None) -> None:
        super().__init__()
        frequencies, magnitude = rotary_frequencies(head_dim, max_position, base, scaling)
        positions = torch.arange(extended_positions(max_position, scaling), dtype=torch.float32)
        angles = torch.outer(positions, frequencies.to(positions.device))
        table = torch.cat((angles.cos() * magnitude, angles.sin() * magnitude), dim=-1)
        self.register_buffer("cos_sin_cache", table, persistent=False)

    def forward(self, positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T], q [T, H, D], k [T, KH, D] -> turned q and k; components beyond the table's width stay."""
        return ops.rotary_embedding(q, k, positions, self.cos_sin_cache)


def softmax_magnitude(scaling: Scaling | None) -> float:
    """Factor on the softmax scale of a model whose scaling has `mscale_all_dim` (DeepSeek-V2 and its successors), else 1.

    YaRN's magnitude (2309.00071) of both the query and the key, whole heads of them, not only the components that turn.
    """
    if not scaling or not scaling.get("mscale_all_dim"):
        return 1.0
    return _yarn_scale(scaling["factor"], scaling["mscale_all_dim"]) ** 2


def extended_positions(max_position: int, scaling: Scaling | None) -> int:
    """Positions that the scaled embedding reaches."""
    if not scaling:
        return max_position
    rope_type, factor = scaling["rope_type"], float(scaling.get("factor", 1.0))
    original = scaling.get("original_max_position_embeddings") or max_position
    if rope_type == "linear":
        return math.ceil(original * factor)
    if rope_type == "dynamic":
        return math.ceil(max_position * factor)
    if rope_type == "yarn":
        return max(max_position, math.ceil(original * factor))
    return max_position


def rotary_frequencies(
    dim: int, max_position: int, base: float, scaling: Scaling | None
) -> tuple[Tensor, float]:
    """(radians per position [dim / 2] float32, factor on cos and sin) of a scaling type."""
    rope_type = scaling["rope_type"] if scaling else "default"
    if rope_type not in _SCALINGS:
        raise ValueError(f"rope_type must be one of {', '.join(_SCALINGS)}, got {rope_type!r}")
    try:
        return _SCALINGS[rope_type](dim, max_position, base, scaling or {})
    except KeyError as error:
        raise ValueError(f"rope_scaling of type {rope_type!r} lacks {error}") from None


def _inverse_frequencies(dim: int, base: float) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim
    return 1.0 / (base**exponents)


def _default(dim: int, max_position: int, base: float, scaling: Scaling) -> tuple[Tensor, float]:
    return _inverse_frequencies(dim, base), 1.0


def _linear(dim: int, max_position: int, base: float, scaling: Scaling) -> tuple[Tensor, float]:
    """Position interpolation (2306.15595)."""
    return _inverse_frequencies(dim, base) / scaling["factor"], 1.0


def _dynamic(dim: int, max_position: int, base: float, scaling: Scaling) -> tuple[Tensor, float]:
    """NTK-aware base for a context `factor` times as long."""
    factor = scaling["factor"]
    stretched = base * ((factor * factor) - (factor - 1)) ** (dim / (dim - 2))
    return _inverse_frequencies(dim, stretched), 1.0


def _llama3(dim: int, max_position: int, base: float, scaling: Scaling) -> tuple[Tensor, float]:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    frequencies = _inverse_frequencies(dim, base)
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / factor, 1.0


def _yarn(dim: int, max_position: int, base: float, scaling: Scaling) -> tuple[Tensor, float]:
    """YaRN (2309.00071): interpolate the slow pairs, keep the fast ones, sharpen attention by `magnitude`."""
    factor = scaling["factor"]
    original = scaling.get("original_max_position_embeddings") or max_position

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = pair_that_turns(scaling.get("beta_fast") or 32)
    high = pair_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 1e-3)
    stretched = ramp.clamp(0, 1)
    frequencies = _inverse_frequencies(dim, base)
    return frequencies * (1 - stretched) + frequencies / factor * stretched, _yarn_magnitude(scaling)


def _longrope(dim: int, max_position: int, base: float, scaling: Scaling) -> tuple[Tensor, float]:
    """LongRoPE (2402.13753): each pair's own stretch, one set for short contexts and one for long ones, and a magnitude.

    `served_positions` chooses the set, so that all requests of an engine have one table.
    """
    original = scaling["original_max_position_embeddings"]
    is_long = scaling.get("served_positions", max_position) > original
    stretch = torch.tensor(scaling["long_factor" if is_long else "short_factor"], dtype=torch.float32, device="cpu")
    if len(stretch) != dim // 2:
        raise ValueError(f"long_factor and short_factor must have {dim // 2} numbers, got {len(stretch)}")
    factor = scaling.get("factor") or max_position / original
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim
    return 1.0 / (stretch * base**exponents), float(magnitude)


def _yarn_magnitude(scaling: Scaling) -> float:
    factor = scaling["factor"]
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return _yarn_scale(factor, scaling["mscale"]) / _yarn_scale(factor, scaling["mscale_all_dim"])
    return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


_SCALINGS: dict[str, Callable[[int, int, float, Scaling], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
