"""The functions that follow a product of a feed-forward block, by the names that ops and layers give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ActivationName = Literal["silu", "gelu", "gelu_tanh", "relu", "quick_gelu"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "quick_gelu": _quick_gelu,
}
"""silu: x sigmoid(x). gelu (1606.08415): x times the probability that a normal number is below x; gelu_tanh: with
tanh(sqrt(2 / pi) (x + 0.044715 x^3)) for its error function; quick_gelu: x sigmoid(1.702 x). relu: x above 0, else 0."""


def check_activation(name: str | None) -> None:
    """Raises ValueError for a name that is none of ACTIVATIONS."""
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
