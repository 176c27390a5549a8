"""A mixture of experts on every backend: the choice and the sum spelled out in float64; rows alone, levels, threads, programs."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quire import ops
from quire.ops import cpu, registry
from quire.ops.capture import StepTensors, capture
from quire.ops.routing import Routing
from quire.ops.weights import FACTOR_GROUP, ROW_TABLE_INPUTS, PackedWeight, WeightFormat, stacked_rows

CPU = torch.device("cpu")
BACKENDS = registry.backends("experts", CPU)
EXTENSION, _REASON = cpu.load()
needs_kernels = pytest.mark.skipif(EXTENSION is None, reason=f"no C++ kernels: {_REASON}")

FORMATS = {
    "float32": WeightFormat("float32"),
    "bfloat16": WeightFormat("bfloat16"),
    "float16": WeightFormat("float16"),
    "int8": WeightFormat("int8"),
    "int8-a64": WeightFormat("int8", 0, 64),
    "int4-g32": WeightFormat("int4", 32),
    "int4-g64-a32": WeightFormat("int4", 64, 32),
    "int4-g128-a128": WeightFormat("int4", 128, 128),
    "int4-g32-zeros": WeightFormat("int4", 32, 64, has_zeros=True),
    "float8": WeightFormat("float8"),
    "float8-g128": WeightFormat("float8", 128),
    "table4-g64": WeightFormat("table4", 64, table=tuple(0.3 * code - 2.1 for code in range(16))),
    "row_table4": WeightFormat("row_table4"),
    "uint8-g32-half": WeightFormat("uint8", 32, 32, half_activation_scales=True),
    "uint6-g16-two": WeightFormat("uint6", 16, 256, two_levels=True),
    "uint5-g32-minima": WeightFormat("uint5", 32, 32, has_minima=True),
    "uint4-g32-minima-two": WeightFormat("uint4", 32, 256, has_minima=True, two_levels=True),
    "uint3-g16-two": WeightFormat("uint3", 16, 256, two_levels=True),
    "uint2-g16-minima-two": WeightFormat("uint2", 16, 256, has_minima=True, two_levels=True),
    "lookup4-g32": WeightFormat("lookup4", 32, 32, table=tuple(range(-8, 8))),
}
ROUTINGS = {
    "mixtral": Routing(8, 2, renormalized=True),
    "one-expert": Routing(1, 1),
    "all": Routing(17, 17, scale=0.5),
    "many": Routing(130, 8),
    "groups-by-best": Routing(24, 5, scale=16.0, num_groups=6, top_groups=3),
    "groups-by-two": Routing(32, 6, "sigmoid", True, 2.5, 4, 2, "sum_of_top_2"),
    "sigmoid": Routing(20, 3, "sigmoid", True),
}
"""(num_experts, top_k, scoring, renormalized, scale, num_groups, top_groups, group_score)"""


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    yield
    if EXTENSION is not None:
        EXTENSION.set_num_threads(1)


# -- choosing ------------------------------------------------------------------------------------------------


def choose(logits: list[float], bias: list[float], routing: Routing) -> tuple[list[int], list[float]]:
    """The definition for one token, number by number."""
    if routing.scoring == "softmax":
        powers = [math.exp(x - max(logits)) for x in logits]
        scores = [power / sum(powers) for power in powers]
    else:
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    choices = [score + extra for score, extra in zip(scores, bias)]
    size = routing.num_experts // routing.num_groups
    groups = [choices[i : i + size] for i in range(0, len(choices), size)]
    counted = 2 if routing.group_score == "sum_of_top_2" else 1
    strength = [sum(sorted(group, reverse=True)[:counted]) for group in groups]
    best_groups = sorted(range(len(groups)), key=lambda g: (-strength[g], g))[: routing.top_groups]
    inside = [expert for expert in range(len(choices)) if expert // size in best_groups]
    ids = sorted(inside, key=lambda expert: (-choices[expert], expert))[: routing.top_k]
    total = sum(scores[i] for i in ids) if routing.renormalized else 1.0
    return ids, [scores[i] / total * routing.scale for i in ids]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", ROUTINGS)
def test_route_is_its_definition(name, has_bias, backend):
    routing = ROUTINGS[name]
    logits = draw(30, routing.num_experts, seed=1) * 2
    bias = draw(routing.num_experts, seed=2) if has_bias else None
    with registry.override(None, backend):
        ids, weights = ops.route(logits, routing, bias)
        alone = ops.route(logits[7:8], routing, bias)
    assert ids.dtype == torch.int32 and weights.dtype == torch.float32
    for row, (found, weighed) in enumerate(zip(ids.tolist(), weights.tolist())):
        extra = [0.0] * routing.num_experts if bias is None else bias.tolist()
        expected, numbers = choose(logits[row].tolist(), extra, routing)
        assert found == expected
        assert weighed == pytest.approx(numbers, rel=1e-5)
    assert torch.equal(alone[0], ids[7:8]) and torch.allclose(alone[1], weights[7:8])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_expert_and_group(backend):
    with registry.override(None, backend):
        assert ops.route(torch.zeros(2, 6), Routing(6, 3))[0].tolist() == [[0, 1, 2]] * 2
        logits = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
        assert ops.route(logits, Routing(6, 2))[0].tolist() == [[1, 2]]
        in_groups = Routing(6, 2, "sigmoid", num_groups=3, top_groups=1, group_score="sum_of_top_2")
        assert ops.route(logits, in_groups)[0].tolist() == [[1, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ROUTINGS)
def test_ids_of_nan_are_valid_and_do_not_repeat(name, backend):
    routing = ROUTINGS[name]
    logits = draw(3, routing.num_experts, seed=1)
    logits[0] = float("nan")
    logits[1, 0] = float("inf")
    with registry.override(None, backend):
        ids, weights = ops.route(logits, routing)
        expected = ops.route(logits[2:], routing)
    for row in ids.tolist():
        assert len(set(row)) == routing.top_k and all(0 <= expert < routing.num_experts for expert in row)
    assert weights[0].isnan().all()
    assert torch.equal(ids[2:], expected[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scoring": "relu"}, "scoring must be one of softmax, sigmoid, got 'relu'"),
        ({"group_score": "mean"}, "group_score must be one of max, sum_of_top_2, got 'mean'"),
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"num_groups": 3}, r"num_groups must be a divisor of num_experts \(8\), got 3"),
        ({"num_groups": 4, "top_groups": 5}, r"top_groups must be between 1 and num_groups \(4\), got 5"),
        ({"num_groups": 8, "group_score": "sum_of_top_2"}, "groups of at least 2 experts, got 1"),
        ({"num_groups": 4, "top_k": 3}, "top_k must be between 1 and 2, got 3"),
        ({"top_k": 0}, "top_k must be between 1 and 8, got 0"),
    ],
)
def test_a_routing_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Routing(**{"num_experts": 8, "top_k": 2} | changes)


# -- the experts ---------------------------------------------------------------------------------------------


class Block:
    """Random experts: their matrices, and the two stacks in a format."""

    def __init__(self, num_experts: int, hidden: int, inner: int, seed: int = 3) -> None:
        self.hidden, self.inner = hidden, inner
        self.gates, self.ups = (draw(num_experts, inner, hidden, seed=seed + i) / hidden**0.5 for i in (0, 1))
        self.downs = draw(num_experts, hidden, inner, seed=seed + 2) / inner**0.5

    def ordered_stacks(self, format: WeightFormat) -> tuple[PackedWeight, PackedWeight]:
        """The same columns, but each expert's are those of inputs in an order of its own."""
        return tuple(replace(stack, input_order=draw_orders(len(self.gates), stack.input_size)) for stack in self.stacks(format))

    def stacks(self, format: WeightFormat | None) -> tuple[Tensor | PackedWeight, Tensor | PackedWeight]:
        """gate_up and down; plain tensors without a format."""
        gate_up = torch.cat([stack(self.gates), stack(self.ups)])
        if format is None:
            return gate_up, stack(self.downs)
        if format.is_grouped or "table" in format.name or format.has_zeros:
            return encoded(gate_up, format, gate_up=True), encoded(stack(self.downs), format)
        return ops.pack_weight(gate_up, format, gate_up=True), ops.pack_weight(stack(self.downs), format)


def draw_orders(num_experts: int, inputs: int) -> Tensor:
    """int64 [experts, inputs]; the first expert's is none."""
    orders = draw(num_experts, inputs, seed=inputs).argsort(1)
    orders[0] = torch.arange(inputs)
    return orders


def stack(matrices: Tensor) -> Tensor:
    """[E, N, K] -> [E * stacked_rows(N), K]. What fills up is not zero, so that a result with it would differ."""
    out = matrices.new_full((len(matrices), stacked_rows(matrices.shape[1]), matrices.shape[2]), 0.5)
    out[:, : matrices.shape[1]] = matrices
    return out.flatten(0, 1)


def encoded(matrix: Tensor, format: WeightFormat, gate_up: bool = False) -> PackedWeight:
    """A weight of random codes and numbers, about as large as `matrix`, for formats that no floats are rounded to."""
    generator, (rows, inputs) = torch.Generator().manual_seed(len(matrix)), matrix.shape
    bits = 4 if format.name in ("int4", "table4") else int(format.name[-1])
    codes = {"values": torch.randint(0, 2**bits, (rows, inputs), generator=generator, dtype=torch.uint8)}
    for name, (count, dtype) in format.numbers(inputs).items():
        if dtype.is_floating_point:
            size = inputs**-0.5 / (2**bits if "scale" in name else 4)
            codes[name] = (torch.randn(rows, count, generator=generator) * size).to(dtype)
        else:
            codes[name] = torch.randint(0, 16, (rows, count), generator=generator, dtype=dtype)
        if name.endswith("factors"):
            codes[name] /= 8
    weight = ops.new_weight(format, rows, inputs, gate_up, CPU)
    ops.set_quantized_rows(weight, 0, **codes)
    return weight


def rounded(x: Tensor, format: WeightFormat) -> Tensor:
    """Rows as they meet weights of a format."""
    if format.rounds_to_bfloat16:
        return x.bfloat16().float()
    if not format.is_integer:
        return x
    parts = x.split(format.activation_group or x.shape[1], 1)
    steps = [part.abs().amax(1, keepdim=True) / 127 for part in parts]
    kept = [step.half().float() if format.half_activation_scales else step for step in steps]
    return torch.cat([(part / step).round() * own for part, step, own in zip(parts, steps, kept)], 1)


def spelled_out(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: PackedWeight, down: PackedWeight, block: Block
) -> Tensor:
    """The sum over a token's experts in float64, with the matrices that the stacks stand for."""
    hidden, inner, format = block.hidden, block.inner, gate_up.format
    both = ops.unpack_weight(gate_up).double().unflatten(0, (2, -1, stacked_rows(inner)))[:, :, :inner]
    back = ops.unpack_weight(down).double().unflatten(0, (-1, stacked_rows(hidden)))[:, :hidden]
    rows, out = rounded(x, format).double(), torch.zeros(len(x), hidden, dtype=torch.float64)
    for token, chosen in enumerate(ids.tolist()):
        for rank, expert in enumerate(chosen):
            gate, up = (both[half, expert] @ rows[token] for half in (0, 1))
            middle = rounded((gate * gate.sigmoid() * up)[None].float(), format).double()[0]
            out[token] += weights[token, rank].double() * (back[expert] @ middle)
    return out


def fits(format: WeightFormat, *input_sizes: int) -> bool:
    """Whether rows of these sizes can be cut into the format's groups."""
    group = FACTOR_GROUP if format.two_levels else 1 if format.name == "float8" else max(format.group_size, 1)
    group = ROW_TABLE_INPUTS if format.name == "row_table4" else group
    return all(size % group == 0 for size in input_sizes)


SHAPES = (
    (0, 4, 2, 128, 128),
    (1, 8, 2, 128, 256),
    (9, 5, 3, 256, 128),
    (130, 3, 1, 128, 128),
    (40, 20, 4, 128, 384),
    (33, 6, 2, 256, 256),
)
UNEVEN = ((1, 7, 2, 70, 37), (21, 6, 6, 33, 100), (50, 9, 2, 100, 17))
"""(tokens, experts, chosen, hidden, inner); formats in groups cannot have the uneven ones."""
TABLE = [
    pytest.param(backend, format, *shape, id=f"{backend}-{name}-{'x'.join(map(str, shape))}")
    for backend in BACKENDS
    for name, format in FORMATS.items()
    for shape in SHAPES + UNEVEN
    if fits(format, *shape[3:])
]


@pytest.mark.parametrize(("backend", "format", "tokens", "num_experts", "top_k", "hidden", "inner"), TABLE)
def test_experts_are_their_definition(backend, format, tokens, num_experts, top_k, hidden, inner):
    block = Block(num_experts, hidden, inner)
    x, logits = draw(tokens, hidden, seed=1), draw(tokens, num_experts, seed=2)
    with registry.override(None, backend):
        gate_up, down = block.stacks(format)
        ids, weights = ops.route(logits, Routing(num_experts, top_k, renormalized=True))
        out = ops.experts(x, ids, weights, gate_up, down)
        expected = spelled_out(x, ids, weights, gate_up, down, block)
    assert out.shape == (tokens, hidden) and out.dtype == torch.float32
    # A middle that lies between two integers may be rounded either way.
    exact = ("float32", "float16", "table4", "row_table4")
    tolerance = 1e-5 if format.name in exact else {"bfloat16": 4e-3, "float8": 4e-3}.get(format.name, 2e-2)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8", "int4-g32", "float8", "float8-g128"])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "hidden", "inner"), [(0, 3, 2, 128, 128), (1, 6, 2, 128, 640), (19, 5, 3, 1152, 128)]
)
def test_experts_with_inputs_in_orders_of_their_own(name, tokens, num_experts, top_k, hidden, inner, backend):
    """Formats that round a whole row alike: the order changes no rounding, and so nothing but the order of sums."""
    block, format = Block(num_experts, hidden, inner), FORMATS[name]
    x, logits = draw(tokens, hidden, seed=1), draw(tokens, num_experts, seed=2)
    with registry.override(None, backend):
        gate_up, down = block.ordered_stacks(format)
        ids, weights = ops.route(logits, Routing(num_experts, top_k, renormalized=True))
        out = ops.experts(x, ids, weights, gate_up, down)
        expected = spelled_out(x, ids, weights, gate_up, down, block)
    tolerance = {"float32": 1e-5, "bfloat16": 4e-3, "float8": 4e-3}.get(format.name, 2e-2)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_matrices_of_a_stack_with_orders_are_in_the_order_of_the_inputs(backend):
    block, format = Block(3, 40, 24), FORMATS["float32"]
    with registry.override(None, backend):
        for plain, ordered in zip(block.stacks(format), block.ordered_stacks(format)):
            matrices = ops.unpack_weight(plain).unflatten(0, (-1, 3, plain.output_size // 3 // (2 if plain.gate_up else 1)))
            found = ops.unpack_weight(ordered).view(matrices.shape)
            for expert, order in enumerate(ordered.input_order):
                assert torch.equal(found[:, expert][..., order], matrices[:, expert])


def test_plain_weights_and_every_activation():
    block = Block(4, 40, 24)
    x, (gate_up, down) = draw(6, 40, seed=1), block.stacks(None)
    ids, weights = ops.route(draw(6, 4, seed=2), Routing(4, 2))
    packed = block.stacks(WeightFormat("float32"))
    for activation in ("silu", "gelu", "gelu_tanh", "relu", "quick_gelu"):
        out = ops.experts(x, ids, weights, gate_up, down, activation)
        torch.testing.assert_close(ops.experts(x, ids, weights, *packed, activation), out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_chosen_experts_count(backend):
    block = Block(6, 64, 32)
    for matrices in (block.gates, block.ups, block.downs):
        matrices[[0, 3, 5]] = float("nan")
    x, weights = draw(4, 64, seed=1), torch.full((4, 2), 0.5)
    ids = torch.tensor([[1, 2], [4, 1], [2, 1], [4, 2]], dtype=torch.int32)
    with registry.override(None, backend):
        gate_up, down = block.stacks(WeightFormat("float32"))
        assert ops.experts(x, ids, weights, gate_up, down).isfinite().all()
        ids[2, 1] = 3
        is_finite = ops.experts(x, ids, weights, gate_up, down).isfinite().all(1)
    assert is_finite.tolist() == [True, True, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_stacks_that_do_not_fit_are_named(backend):
    block = Block(4, 64, 32)
    x, ids, weights = draw(3, 64, seed=1), torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)
    with registry.override(None, backend):
        gate_up, down = block.stacks(WeightFormat("float32"))
        with pytest.raises(ValueError, match=r"blocks 60 to 32 and back, got \[256, 64\] and \[256, 32\]"):
            ops.experts(x[:, :60], ids, weights, gate_up, down)
        plain = ops.pack_weight(torch.cat([stack(block.gates), stack(block.ups)]), WeightFormat("float32"))
        with pytest.raises(ValueError, match="gate_up must be packed with gate_up=True for experts"):
            ops.experts(x, ids, weights, plain, down)
        with pytest.raises(ValueError, match=r"input_order of down must be \[4, 32\] for experts, got \[32\]"):
            ops.experts(x, ids, weights, gate_up, replace(down, input_order=torch.arange(32)))


@needs_kernels
def test_a_choice_that_does_not_fit_is_refused():
    gate_up, down = Block(4, 64, 32).stacks(WeightFormat("float32"))
    x, ids, weights = draw(3, 64, seed=1), torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)
    ids[1, 1] = 4
    with pytest.raises(IndexError, match=r"ids must be in \[0, 4\), got 0 to 4"):
        ops.experts(x, ids, weights, gate_up, down)
    with pytest.raises(ValueError, match=r"ids and weights must be \[3, k\], got \[3, 1\] and \[3, 2\]"):
        ops.experts(x, ids[:, :1], weights, gate_up, down)
    with pytest.raises(ValueError, match=r"logits must be \[T, 4\], got \[3, 64\]"):
        ops.route(x, Routing(4, 2))
    with pytest.raises(ValueError, match=r"correction_bias must be \[4\], got \[5\]"):
        ops.route(x[:, :4], Routing(4, 2), torch.zeros(5))


# -- the same bits -------------------------------------------------------------------------------------------


def levels_alike(format: WeightFormat) -> list[int]:
    """The levels that give the bits of the one in use: AMX adds bfloat16 products in an order of its own."""

    def has_own_order(level: str) -> bool:
        return (format.name, level) == ("bfloat16", "avx512_amx")

    own = has_own_order(cpu.level())
    return [EXTENSION.LEVEL_NAMES.index(name) for name in EXTENSION.levels() if has_own_order(name) == own]


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    tokens=st.integers(1, 60),
    num_experts=st.integers(1, 12),
    hidden=st.integers(1, 2).map(lambda n: 256 * n),
    inner=st.integers(1, 2).map(lambda n: 256 * n),
    data=st.data(),
)
def test_a_row_is_the_same_alone_in_any_slice_on_any_threads_and_at_every_level(
    name, tokens, num_experts, hidden, inner, data
):
    module = importlib.import_module("quire.ops.cpu.moe")
    routing = Routing(num_experts, data.draw(st.integers(1, num_experts)), "sigmoid", True)
    x, logits = draw(tokens, hidden, seed=1), draw(tokens, num_experts, seed=2) * 3
    logits[:, 0] += data.draw(st.sampled_from([0.0, 20.0]))  # one expert may have most rows
    block = Block(num_experts, hidden, inner)
    gate_up, down = (block.ordered_stacks if data.draw(st.booleans()) else block.stacks)(FORMATS[name])
    EXTENSION.set_num_threads(1)
    ids, weights = ops.route(logits, routing)
    expected = ops.experts(x, ids, weights, gate_up, down)
    first = data.draw(st.integers(0, tokens - 1))
    part = slice(first, data.draw(st.integers(first + 1, tokens)))
    for threads in (1, 2, 3, 5):
        EXTENSION.set_num_threads(threads)
        assert torch.equal(ops.experts(x[part], ids[part], weights[part], gate_up, down), expected[part])
        assert torch.equal(ops.experts(x, ids, weights, gate_up, down), expected)
    for level in levels_alike(FORMATS[name]):
        found = module.route_at_level(logits, routing, None, level)
        assert torch.equal(found[0], ids) and torch.equal(found[1], weights)
        out = module.experts_at_level(x, ids, weights, gate_up, down, "silu", level)
        assert torch.equal(out, expected)


@needs_kernels
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_ordered", [False, True])
def test_captured_equals_op_by_op(name, is_ordered):
    """The number of rows that each expert has is known only when the program runs."""
    vocab, hidden, inner, num_experts = 64, 256, 256, 9
    routing, tokens = (
        Routing(num_experts, 3, "sigmoid", True),
        ops.pack_weight(draw(vocab, hidden, seed=1), FORMATS["float32"]),
    )
    router = ops.pack_weight(draw(num_experts, hidden, seed=2), FORMATS["float32"])
    gate = ops.pack_weight(draw(1, hidden, seed=4), FORMATS["float32"])
    block, bias = Block(num_experts, hidden, inner), draw(num_experts, seed=3)
    stacks = (block.ordered_stacks if is_ordered else block.stacks)(FORMATS[name])

    def forward(step: StepTensors) -> Tensor:
        x = ops.embedding(step.token_ids, tokens)
        ids, weights = ops.route(ops.linear(x, router), routing, bias)
        return ops.experts(x, ids, weights, *stacks) + ops.sigmoid_gate(x, ops.linear(x, gate))

    program, none = capture(forward, 70, CPU), torch.zeros(0, dtype=torch.int32)
    for num_tokens in (1, 70, 2, 33):
        token_ids = torch.arange(num_tokens) * 7 % vocab
        step = StepTensors(token_ids, token_ids, token_ids, none[None], none, none)
        expected = forward(step)
        for threads in (1, 2):
            EXTENSION.set_num_threads(threads)
            assert torch.equal(program(step), expected)
        EXTENSION.set_num_threads(1)


# -- the shared expert's gate --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "dim"), [(0, 8), (1, 1), (3, 77), (40, 1200)])
def test_sigmoid_gate(rows, dim, dtype, backend):
    x, gate = draw(rows, dim, seed=1).to(dtype), (draw(rows, 1, seed=2) * 4).to(dtype)
    with registry.override(None, backend):
        out = ops.sigmoid_gate(x, gate)
    assert out.dtype == dtype
    expected = (x.double() * gate.double().sigmoid()).to(dtype)
    torch.testing.assert_close(out, expected, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)


@needs_kernels
def test_sigmoid_gate_at_every_level_and_alone():
    module = importlib.import_module("quire.ops.cpu.pointwise")
    x, gate = draw(9, 700, seed=1), draw(9, 1, seed=2) * 30
    expected = ops.sigmoid_gate(x, gate)
    for level in EXTENSION.levels():
        code = EXTENSION.LEVEL_NAMES.index(level)
        assert torch.equal(module.sigmoid_gate_at_level(x, gate, code), expected)
        assert torch.equal(module.sigmoid_gate_at_level(x[4:5], gate[4:5], code), expected[4:5])
    with pytest.raises(
        ValueError, match=r"gate must be \[T, 1\] for x \[T, N\], got \[9, 2\] for \[9, 700\]"
    ):
        ops.sigmoid_gate(x, torch.zeros(9, 2))
