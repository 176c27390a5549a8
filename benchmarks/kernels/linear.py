"""Linear layers at every weight format and number of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.kernels.measure import Case, Work, make_inputs, make_step, nothing, num_copies, with_forward
from benchmarks.kernels.models import Dimensions
from quire import ops
from quire.ops.capture import StepTensors
from quire.ops.weights import PackedWeight, WeightFormat

FORMATS: dict[str, WeightFormat] = {
    "float32": WeightFormat("float32"),
    "bfloat16": WeightFormat("bfloat16"),
    "float16": WeightFormat("float16"),
    **{f"int8/{group}": WeightFormat("int8", activation_group=group) for group in (128, 64, 32, 0)},
    **{
        f"int4-{size}/{group}": WeightFormat("int4", group_size=size, activation_group=group)
        for size in (32, 128)
        for group in (128, 0)
    },
    **{f"float8-{size}": WeightFormat("float8", group_size=size) for size in (0, 128)},
}
"""int8/A, int4-G/A and float8-G: weight scales per G inputs (0: per output), activation scales per A (0: per token)."""

_LARGEST_RUN = 60e9  # operations: with many rows a few copies are enough


def cases(
    model: str, dimensions: Dimensions, formats: Sequence[str], rows: Sequence[int], matrices: Sequence[str]
) -> Iterator[Case]:
    """One case per matrix, format and number of rows M; weights are freed as the next matrix comes."""
    for matrix, (outputs, inputs) in dimensions.matrices().items():
        if matrix not in matrices:
            continue
        source = torch.rand(outputs, inputs).sub_(0.5)
        embedding = make_inputs(inputs)
        for name in formats:
            format = FORMATS[name]
            if inputs % (format.group_size or 1):
                continue
            gate_up = matrix == "gate_up"
            weights = _copies(source, format, gate_up)
            for num_rows in rows:
                yield _case(model, f"{matrix} {name} M={num_rows}", weights, embedding, num_rows)


def _copies(source: Tensor, format: WeightFormat, gate_up: bool) -> list[PackedWeight]:
    first = ops.pack_weight(source, format, gate_up)
    return [first, *(ops.pack_weight(source, format, gate_up) for _ in range(num_copies(first.num_bytes, 128) - 1))]


def _case(model: str, detail: str, weights: list[PackedWeight], embedding: PackedWeight, num_rows: int) -> Case:
    weight = weights[0]
    operations = 2.0 * num_rows * weight.output_size * weight.input_size
    used = weights[: max(1, int(_LARGEST_RUN / operations))]
    width = weight.output_size // (2 if weight.gate_up else 1)
    work = Work(
        num_bytes=weight.num_bytes + 4 * num_rows * (weight.input_size + width),
        operations=operations,
        peak="int8" if weight.format.is_integer else "bfloat16" if weight.format.rounds_to_bfloat16 else "float32",
    )
    multiply = ops.gate_up_linear if weight.gate_up else ops.linear

    def forward(step: StepTensors) -> Tensor:
        x = ops.embedding(step.token_ids, embedding)
        for one in used:
            out = multiply(x, one)
        return out

    return with_forward(Case("linear", model, detail, work, len(used), nothing), forward, make_step(num_rows))
