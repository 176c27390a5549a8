"""A captured model gives the bits of the same ops called one by one, and what cannot be captured is refused."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor

from quire import ops
from quire.ops import cpu
from quire.ops.capture import (
    Forward,
    NotCapturable,
    RowFunction,
    RowRun,
    Step,
    StepTensors,
    Tables,
    capture,
    capture_model,
)
from quire.ops.weights import WeightFormat, WeightParts
from quire.runner.inputs import make_tensors

extension, _reason = cpu.load()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no C++ kernels: {_reason}")

HIDDEN, INNER, VOCAB, MAX_TOKENS = 64, 96, 200, 64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_forward(format: WeightFormat, num_layers: int = 3) -> Forward:
    """A residual stack of norm, gate/up and down."""
    table = ops.pack_weight(draw(VOCAB, HIDDEN, seed=1), format)
    norm = draw(HIDDEN, seed=2).abs()
    layers = [
        (
            ops.pack_weight(draw(2 * INNER, HIDDEN, seed=10 + i), format, gate_up=True),
            ops.pack_weight(draw(HIDDEN, INNER, seed=20 + i), format),
        )
        for i in range(num_layers)
    ]

    def forward(step: StepTensors) -> Tensor:
        hidden, residual = ops.embedding(step.token_ids, table), None
        for gate_up, down in layers:
            if residual is None:
                hidden, residual = ops.rms_norm(hidden, norm, 1e-6), hidden
            else:
                hidden, residual = ops.rms_norm(hidden, norm, 1e-6, residual)
            hidden = ops.linear(ops.gate_up_linear(hidden, gate_up), down)
        return ops.rms_norm(hidden, norm, 1e-6, residual)[0]

    return forward


def make_step(token_ids: Tensor) -> StepTensors:
    zeros, small = torch.zeros_like(token_ids), torch.zeros(2, dtype=torch.int32)
    return StepTensors(token_ids, zeros, zeros, small.view(1, 2), small, small[:1])


def capture_rows(function: RowFunction, max_rows: int):
    from quire.ops.cpu import graph

    return graph.capture_rows(function, HIDDEN, max_rows)


def argmax(head, rows: Tensor) -> tuple[Tensor, Tensor]:
    head.source[: len(rows)] = rows
    extension.Program(head.argmax).run(len(rows))
    return head.ids[: len(rows)], head.values[: len(rows)]


def captured(forward: Forward, max_tokens: int = MAX_TOKENS):
    return capture(forward, max_tokens, torch.device("cpu"))


@pytest.mark.parametrize(
    "format",
    [
        WeightFormat("float32"),
        WeightFormat("bfloat16"),
        WeightFormat("float16"),
        WeightFormat("int8"),
        WeightFormat("int8", activation_group=32),
        WeightFormat("int4", group_size=32, activation_group=32),
        WeightFormat("float8"),
        WeightFormat("float8", group_size=128),
    ],
    ids=str,
)
def test_captured_equals_op_by_op(format: WeightFormat) -> None:
    forward = make_forward(format)
    program = captured(forward)
    for num_tokens in (1, 2, 33, MAX_TOKENS):
        step = make_step(torch.arange(num_tokens) * 7 % VOCAB)
        expected = forward(step)
        for threads in (1, 2):
            extension.set_num_threads(threads)
            assert torch.equal(program(step), expected)
        extension.set_num_threads(1)


def make_other_forward(format: WeightFormat) -> Forward:
    """What the models without RMS norms are made of: positions, layer norms, activations, sums and products of rows."""
    tokens, places = (ops.pack_weight(draw(VOCAB, HIDDEN, seed=i), format) for i in (1, 2))
    inner, outer = ops.pack_weight(draw(INNER, HIDDEN, seed=3), format), ops.pack_weight(draw(HIDDEN, INNER, seed=4), format)
    weight, bias, heads = draw(HIDDEN, seed=5), draw(HIDDEN, seed=6), draw(4, HIDDEN // 4, seed=7)

    def forward(step: StepTensors) -> Tensor:
        hidden = ops.embedding(step.token_ids, tokens) * 0.3 + ops.embedding(step.positions, places)
        normed = ops.layer_norm(hidden, weight, bias, 1e-5)
        attended = ops.layer_norm(normed.unflatten(-1, (4, -1)), heads, None, 1e-5).flatten(1)
        block = ops.linear(ops.linear(normed, inner, draw(INNER, seed=8), "gelu"), outer, bias)
        normed, total = ops.layer_norm(attended + block, weight, None, 1e-5, hidden)
        return ops.soft_cap(normed + total, 2.5)

    return forward


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8"])
def test_sums_products_positions_and_layer_norms_are_captured(name: str) -> None:
    forward = make_other_forward(WeightFormat(name))
    program = captured(forward)
    for num_tokens in (1, 33, MAX_TOKENS):
        step = make_step(torch.arange(num_tokens) * 7 % VOCAB)
        step = dataclasses.replace(step, positions=torch.arange(num_tokens) * 3 % VOCAB)
        expected = forward(step)
        for threads in (1, 2):
            extension.set_num_threads(threads)
            assert torch.equal(program(step), expected)
        extension.set_num_threads(1)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8"])
def test_a_layer_norm_and_quantization_become_one_kernel(name: str) -> None:
    weight, bias = draw(HIDDEN, seed=5), draw(HIDDEN, seed=6)
    matrix = ops.pack_weight(draw(VOCAB, HIDDEN, seed=3), WeightFormat(name))
    for own_bias in (bias, None):
        head = capture_rows(lambda x, b=own_bias: ops.linear(ops.layer_norm(x, weight, b, 1e-5, x)[0], matrix), 8)
        rows = draw(8, HIDDEN, seed=9)
        assert torch.equal(head(rows), ops.linear(ops.layer_norm(rows, weight, own_bias, 1e-5, rows)[0], matrix))
        assert len(head.compiled.instructions) == 2


def test_parts_and_reordered_inputs_are_captured() -> None:
    """A product by parts of several formats, one of which stores its columns in another order."""
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(1))
    values, bias = draw(HIDDEN, HIDDEN, seed=2), draw(HIDDEN, seed=3)
    matrix = ops.pack_weight(draw(VOCAB, HIDDEN, seed=3), WeightFormat("int8"))
    for names in (("int8", "float32"), ("bfloat16", "int8")):
        upper, lower = (WeightFormat(name) for name in names)
        half = HIDDEN // 2
        stored = ops.pack_weight(values[:half, order], upper)
        parts = WeightParts(
            (dataclasses.replace(stored, input_order=order), ops.pack_weight(values[half:], lower))
        )
        head = capture_rows(lambda x, w=parts: ops.linear(ops.linear(x, w, bias, "gelu"), matrix), 40)
        rows = draw(40, HIDDEN, seed=9)
        found = ops.linear(rows, parts, bias, "gelu")
        expected = [ops.linear(rows[:, order], stored, bias[:half], "gelu")]
        expected += [ops.linear(rows, parts.parts[1], bias[half:], "gelu")]
        assert torch.equal(found, torch.cat(expected, 1))
        assert torch.equal(head(rows), ops.linear(found, matrix))
        assert torch.equal(ops.unpack_weight(parts)[:half], ops.unpack_weight(stored)[:, order.argsort()])


def test_other_arithmetic_is_refused() -> None:
    weight = ops.pack_weight(draw(VOCAB, HIDDEN, seed=3), WeightFormat("float32"))
    for function in (lambda x: x + 1.0, lambda x: x * x, lambda x: x - x, lambda x: torch.add(x, x, alpha=2)):
        with pytest.raises(NotCapturable, match="torch computes"):
            capture_rows(lambda rows, function=function: ops.linear(function(rows), weight), 8)


def test_norm_and_quantization_become_one_kernel() -> None:
    """Integer formats: embedding, norms with quantization, two products and one quantization per layer, last norm."""
    assert captured(make_forward(WeightFormat("float32"), 2)).num_instructions == 1 + 2 * 3 + 1
    for name in ("int8", "bfloat16"):
        assert captured(make_forward(WeightFormat(name), 2)).num_instructions == 1 + 2 * 4 + 1


def test_rows_are_rounded_once_for_all_weights_that_want_the_same() -> None:
    formats = WeightFormat("int8"), WeightFormat("int8"), WeightFormat("int8", activation_group=32), WeightFormat("bfloat16")
    weights = [ops.pack_weight(draw(VOCAB, HIDDEN, seed=i), format) for i, format in enumerate(formats)]
    norm = draw(HIDDEN, seed=9)

    def sums(rows: Tensor, count: int) -> Tensor:
        normed = ops.rms_norm(rows, norm, 1e-6)
        total = ops.linear(normed, weights[0])
        for weight in weights[1:count]:
            total = total + ops.linear(normed, weight)
        return total

    for count, num_instructions in ((2, 1 + 2 + 1), (3, 1 + 2 + 3 + 2), (4, 1 + 3 + 4 + 3)):
        program = capture_rows(partial(sums, count=count), 8)
        rows = draw(8, HIDDEN, seed=count)
        assert torch.equal(program(rows), sums(rows, count))
        assert len(program.compiled.instructions) == num_instructions


def test_memory_is_shared_by_rows_that_do_not_live_together() -> None:
    sizes = [captured(make_forward(WeightFormat("float32"), n)).compiled._arena.numel() for n in (8, 12)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8"])
def test_a_function_of_rows_is_captured_too(name: str) -> None:
    weight = ops.pack_weight(draw(VOCAB, HIDDEN, seed=3), WeightFormat(name))
    head = capture_rows(lambda rows: ops.linear(rows, weight)[:, :150], 8)
    for count in (1, 8, 3):
        rows = draw(count, HIDDEN, seed=count)
        assert torch.equal(head(rows), ops.linear(rows, weight)[:, :150])
    assert head(rows).data_ptr() == head(rows).data_ptr()
    with pytest.raises(NotCapturable):
        capture_rows(lambda rows: ops.linear(rows, weight).tanh(), 8)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_argmax_without_logits(name: str, threads: int) -> None:
    """The same ids and values as the argmax of the written rows; ties, padding and numbers that are not finite included."""
    matrix = draw(VOCAB + 3, HIDDEN, seed=3)
    matrix[150] = matrix[7]
    weight = ops.pack_weight(matrix, WeightFormat(name, 32 if name == "int4" else 0))
    head = capture_rows(lambda rows: ops.linear(rows, weight), 120)
    extension.set_num_threads(threads)
    try:
        for count in (1, 2, 7, 120):
            rows = draw(count, HIDDEN, seed=count)
            rows[0] = 5 * matrix[7]
            logits = ops.linear(rows, weight)
            ids, values = argmax(head, rows)
            assert int(ids[0]) == 7
            assert torch.equal(ids, logits.argmax(1))
            assert torch.equal(values, logits.amax(1))
        rows[3, 5], rows[4, 0] = float("nan"), float("inf")
        finite = argmax(head, rows)[1].isfinite()
        assert not finite[3] and not finite[4] and int(finite.sum()) == 118
    finally:
        extension.set_num_threads(1)
    part = capture_rows(lambda rows: ops.linear(rows, weight)[:, :150], 4)
    assert part.argmax is None


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_runs_from_the_tables_of_its_requests(threads: int) -> None:
    """Three requests at places of their own: hidden states, logits of chosen rows, greedy tokens, and None where a row is NaN."""
    forward, matrix = make_forward(WeightFormat("float32")), draw(VOCAB, HIDDEN, seed=3)
    weight = ops.pack_weight(matrix, WeightFormat("float32"))
    model = capture_model(forward, lambda rows: ops.linear(rows, weight), HIDDEN, MAX_TOKENS, 8, torch.device("cpu"))
    assert model is not None
    tokens = torch.randint(VOCAB, (5, 40), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    tables = Tables(tokens, torch.zeros(5, 4, dtype=torch.int32), 16)
    step, chosen = Step(tables, [4, 0, 2], [3, 39, 0], [7, 1, 20]), [6, 7, 27]
    ids = torch.cat([tokens[4, 3:10], tokens[0, 39:40], tokens[2, :20]]).long()
    hidden = forward(make_step(ids))
    logits = ops.linear(hidden[chosen], weight)
    extension.set_num_threads(threads)
    try:
        assert torch.equal(model.logits(step, chosen), logits)
        assert model.greedy_tokens(step, chosen) == logits.argmax(1).tolist()
        assert torch.equal(model.hidden(2, 9), hidden[2:9])
        assert torch.equal(model.head(hidden[3:5]), ops.linear(hidden[3:5], weight))
        every = list(range(28))  # more than the head's program has room for
        assert model.greedy_tokens(step, every) is None
        assert torch.equal(model.logits(step, every), ops.linear(hidden, weight))
        ops.set_rows(weight, 5, torch.full((1, HIDDEN), float("nan")))
        assert model.greedy_tokens(step, chosen) is None
    finally:
        extension.set_num_threads(1)
    with pytest.raises(ValueError, match="at most 64 tokens were captured, got 65"):
        model.run(Step(tables, [0, 1], [0, 0], [40, 25]))


def test_the_layout_is_that_of_the_tensors() -> None:
    """What the extension makes of a step, and what the op-by-op path makes of it, give the same attention."""
    generator = torch.Generator().manual_seed(1)
    tables = Tables(
        torch.randint(VOCAB, (3, 64), generator=generator, dtype=torch.int32),
        torch.randperm(30, generator=generator)[:12].view(3, 4).int(),
        16,
    )
    table = ops.pack_weight(draw(VOCAB, HIDDEN, seed=1), WeightFormat("float32"))
    shapes = ops.kv_cache_shape(30, 16, 2, 32, torch.device("cpu"))
    pools = [torch.zeros(shape) for shape in shapes]

    def forward(step: StepTensors) -> Tensor:
        rows = ops.embedding(step.token_ids, table).view(-1, 2, 32)
        ops.write_kv(rows, rows, *pools, step.slot_mapping)
        attention = ops.paged_attention(
            rows, *pools, step.block_tables, step.query_start, step.seq_lens, 0.2, block_size=16
        )
        return attention.view(-1, HIDDEN)

    model = capture_model(forward, lambda rows: ops.linear(rows, table), HIDDEN, 100, 8, torch.device("cpu"))
    assert model is not None
    for first, counts in (([0, 0, 0], [40, 17, 1]), ([40, 17, 1], [1, 1, 1]), ([5, 31, 16], [3, 20, 30])):
        step = Step(tables, [2, 0, 1], first, counts)
        before = [pool.clone() for pool in pools]
        expected = forward(make_tensors(step, torch.device("cpu"))).clone()
        for pool, content in zip(pools, before, strict=True):
            pool.copy_(content)
        model.run(step)
        assert torch.equal(model.hidden(0, sum(counts)), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_of_rows_replace_those_of_the_embedding(threads: int) -> None:
    """In the program and op by op alike, and only in the step that brings them."""
    table = ops.pack_weight(draw(VOCAB, HIDDEN, seed=1), WeightFormat("float32"))
    weight = ops.pack_weight(draw(HIDDEN, HIDDEN, seed=3), WeightFormat("float32"))

    def forward(step: StepTensors) -> Tensor:
        return ops.linear(ops.replace_rows(ops.embedding(step.token_ids, table), step.replaced), weight)

    model = capture_model(forward, lambda rows: ops.linear(rows, table), HIDDEN, MAX_TOKENS, 8, torch.device("cpu"))
    assert model is not None
    tables = Tables(torch.arange(80, dtype=torch.int32).view(2, 40) % VOCAB, torch.zeros(2, 4, dtype=torch.int32), 16)
    vectors = draw(9, HIDDEN, seed=5)
    runs = [RowRun(0, vectors[:2]), RowRun(7, vectors[2:9])]
    extension.set_num_threads(threads)
    try:
        for replaced in (runs, [], runs[1:]):
            step = Step(tables, [1, 0], [0, 5], [10, 5], replaced)
            expected = forward(make_tensors(step, torch.device("cpu")))
            model.run(step)
            assert torch.equal(model.hidden(0, 15), expected)
            unreplaced = forward(make_tensors(Step(tables, [1, 0], [0, 5], [10, 5]), torch.device("cpu")))
            assert torch.equal(expected, unreplaced) is (not replaced)
    finally:
        extension.set_num_threads(1)
    with pytest.raises(ValueError, match="a run of rows must lie within the step"):
        model.run(Step(tables, [1], [0], [8], runs))
    with pytest.raises(ValueError, match=r"vectors must be dense float32 \[n, 64\]"):
        model.run(Step(tables, [1], [0], [8], [RowRun(0, vectors[:, :10])]))


def test_a_model_that_replaces_no_rows_takes_none() -> None:
    with pytest.raises(ValueError, match="runs of rows were given to a model that replaces none"):
        step = dataclasses.replace(make_step(torch.zeros(2, dtype=torch.int64)), replaced=[RowRun(0, draw(1, HIDDEN, seed=1))])
        captured(make_forward(WeightFormat("float32")), 4)(step)


def test_more_tokens_than_captured_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 4 tokens were captured, got 5"):
        captured(make_forward(WeightFormat("float32")), 4)(make_step(torch.zeros(5, dtype=torch.int64)))


def test_arithmetic_between_ops_is_refused() -> None:
    forward = make_forward(WeightFormat("float32"))
    with pytest.raises(NotCapturable, match="torch computes"):
        captured(lambda step: forward(step) + 1)
    with pytest.raises(NotCapturable):
        captured(lambda step: forward(dataclasses.replace(step, token_ids=step.token_ids + 1)))
