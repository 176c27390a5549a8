"""AWQ (2306.00978): inputs that carry large activations are scaled up in the weights that read them, and down in what feeds them,
so that rounding hurts them less; the model computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.errors import UnsupportedModelError
from quire.quantize.grid import Grid

_POWERS = [i / 20 for i in range(20)]

_LLAMA_PAIRS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)
_PAIRS = {
    name: _LLAMA_PAIRS for name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
}
"""By architecture, within a block: what feeds, and what reads. A norm multiplies by its weight, and what up_proj gives is
multiplied by something else: both let a factor through."""


@dataclass(frozen=True)
class Pair:
    """Names of tensors in the checkpoint: one whose outputs are scaled, and those that read them."""

    source: str
    readers: tuple[str, ...]


def pairs_of(architecture: str, num_layers: int) -> Iterator[Pair]:
    """All pairs of a model, block by block. Raises UnsupportedModelError where they are not known."""
    if architecture not in _PAIRS:
        raise UnsupportedModelError(
            f"method awq is for {', '.join(sorted(_PAIRS))}, not for {architecture}: use gptq or rtn"
        )
    for layer in range(num_layers):
        for source, readers in _PAIRS[architecture]:
            prefix = f"model.layers.{layer}."
            yield Pair(f"{prefix}{source}.weight", tuple(f"{prefix}{reader}.weight" for reader in readers))


def find_scales(readers: list[Tensor], hessian: Tensor, magnitudes: Tensor, grid: Grid) -> Tensor:
    """Factors float32 [K] for the inputs of weights float32 [N, K] that read the same `magnitudes` [K], the mean |x|.

    Of several powers of the magnitudes, the one whose rounding changes the outputs least, by `hessian` [K, K], the mean of x x^T.
    """
    best_loss, best = torch.inf, torch.ones_like(magnitudes)
    for power in _POWERS:
        scales = magnitudes.clamp(min=1e-4).pow(power)
        scales = scales / (scales.max() * scales.min()).sqrt()
        loss = sum(_loss(weight, scales, hessian, grid) for weight in readers)
        if loss < best_loss:
            best_loss, best = loss, scales
    return best


def _loss(weight: Tensor, scales: Tensor, hessian: Tensor, grid: Grid) -> float:
    steps = grid.whole_range(weight * scales)
    error = steps.decode(steps.encode(weight * scales)) / scales - weight
    return float(((error @ hessian) * error).sum())


def rescale(
    pair: Pair, scales: Tensor, tensors: Callable[[str], Tensor], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """The tensors of a pair with the factors moved, float32: outputs of the source divided, inputs of the readers multiplied.

    A norm stays in the checkpoint's `dtype`: the factors, which are returned too, are those that its rounded weight leaves.
    """
    source = tensors(pair.source)
    if source.dim() == 1:
        divided = (source / scales).to(dtype).float()
        scales = torch.where(divided == 0, scales, source / divided)
    else:
        divided = source / scales[:, None]
    return scales, {pair.source: divided} | {name: tensors(name) * scales for name in pair.readers}
