"""Which type each tensor of a GGUF file gets: the mixtures that llama.cpp's quantizer knows by name.

Tensors for which a type's name promises too little get more bits; norms, biases and learned positions stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quire.loader.gguf.header import TENSOR_TYPES

INPUTS_OF = {kind.name: kind.inputs for kind in TENSOR_TYPES.values()}
"""By type: the inputs of a block."""
_OFTEN_EXACT = frozenset({"position_embd"})
"""Matrices that stay in float32."""
_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What rows get that are no multiple of 256; llama.cpp takes IQ4_NL for the first two."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is: the module's name in the file, its layer (0 outside of them), and what decides about it."""

    module: str
    layer: int
    num_layers: int
    architecture: str
    group: int
    """Query heads of a key/value head."""
    is_output: bool
    """It is multiplied to logits: the output head, or the embedding where there is no other."""

    @property
    def gets_more(self) -> bool:
        """Whether the layer is one of the first and last eighth, or every third between them."""
        first = self.num_layers // 8
        is_end = self.layer < first or self.layer >= 7 * self.num_layers // 8
        return is_end or (self.layer - first) % 3 == 2


@dataclass(frozen=True)
class Mixture:
    """A type's name as users know it."""

    number: int
    """The file's `general.file_type`."""
    base: str
    """The type of most matrices."""
    choose: Callable[[Place], str | None] = lambda place: None
    """Another type for some of them."""


def _q2_k(place: Place) -> str | None:
    value = "Q4_K" if place.group >= 4 else "Q3_K"
    return {"attn_v": value, "ffn_down": "Q3_K", "attn_output": "Q3_K"}.get(place.module)


def _q3_k_m(place: Place) -> str | None:
    if place.module == "ffn_down":
        return "Q5_K" if place.layer < place.num_layers // 16 else "Q4_K"
    value = "Q5_K" if place.layer < 2 else "Q4_K"
    return {"attn_v": value, "attn_output": "Q4_K", "attn_qkv": "Q4_K"}.get(place.module)


def _q3_k_l(place: Place) -> str | None:
    return {"attn_v": "Q5_K", "ffn_down": "Q5_K", "attn_output": "Q5_K", "attn_qkv": "Q4_K"}.get(place.module)


def _q4_k_s(place: Place) -> str | None:
    is_early = {"attn_v": place.layer < 4, "ffn_down": place.layer < place.num_layers // 8}
    return "Q5_K" if is_early.get(place.module) else None


def _q4_k_m(place: Place) -> str | None:
    if place.module in ("attn_v", "ffn_down"):
        return "Q6_K" if place.gets_more else None
    return "Q5_K" if place.module == "attn_qkv" else None


def _q5_k_m(place: Place) -> str | None:
    return "Q6_K" if place.module == "attn_qkv" or (place.module in ("attn_v", "ffn_down") and place.gets_more) else None


MIXTURES = {
    "F32": Mixture(0, "F32"),
    "F16": Mixture(1, "F16"),
    "BF16": Mixture(32, "BF16"),
    "Q8_0": Mixture(7, "Q8_0"),
    "Q4_0": Mixture(2, "Q4_0"),
    "Q4_1": Mixture(3, "Q4_1"),
    "Q5_0": Mixture(8, "Q5_0"),
    "Q5_1": Mixture(9, "Q5_1"),
    "Q2_K": Mixture(10, "Q2_K", _q2_k),
    "Q3_K_S": Mixture(11, "Q3_K"),
    "Q3_K_M": Mixture(12, "Q3_K", _q3_k_m),
    "Q3_K_L": Mixture(13, "Q3_K", _q3_k_l),
    "Q4_K_S": Mixture(14, "Q4_K", _q4_k_s),
    "Q4_K_M": Mixture(15, "Q4_K", _q4_k_m),
    "Q5_K_S": Mixture(16, "Q5_K"),
    "Q5_K_M": Mixture(17, "Q5_K", _q5_k_m),
    "Q6_K": Mixture(18, "Q6_K"),
}
"""By the names that llama.cpp's quantizer takes."""
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Shorter names of some."""


def type_of(mixture: Mixture, place: Place, shape: tuple[int, ...]) -> str:
    """The type of a tensor of this shape, outermost dimension first."""
    if len(shape) < 2 or place.module.endswith("norm") or place.module in _OFTEN_EXACT:
        return "F32"
    if INPUTS_OF[mixture.base] == 1:
        return mixture.base
    wanted = mixture.choose(place) or mixture.base
    if place.is_output:
        fits = shape[-1] % INPUTS_OF[mixture.base] == 0 and place.architecture != "falcon"
        wanted = "Q6_K" if fits and mixture.base != "Q8_0" else "Q8_0"
    if shape[-1] % INPUTS_OF[wanted] and wanted in _FALLBACKS:
        wanted = _FALLBACKS[wanted]
    return wanted if shape[-1] % INPUTS_OF[wanted] == 0 else "F16"
