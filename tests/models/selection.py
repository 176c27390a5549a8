"""Which shapes a test goes through: all, or of each architecture the first and the others when slow tests are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models import plain_torch
from tests.models.shapes import SHAPES

ALL_SHAPES = [*SHAPES, *plain_torch.MODELS]


def first_of_each() -> list[Any]:
    """Parameters of a test; the second and later shapes of an architecture are slow."""
    seen, params = set(), []
    for shape in ALL_SHAPES:
        architecture = SHAPES[shape][0] if shape in SHAPES else shape.partition("-")[0]
        params.append(pytest.param(shape, marks=pytest.mark.slow if architecture in seen else ()))
        seen.add(architecture)
    return params
