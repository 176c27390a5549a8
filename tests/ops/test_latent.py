"""The ops of multi-head latent attention: every backend against float64; rows alone, levels, teams and chunks bit for bit."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from quire import ops
from quire.ops import cpu, registry
from quire.ops.capture import Step, Tables, capture_model
from quire.ops.weights import WeightFormat, stacked_rows
from quire.runner.inputs import make_tensors

_extension, _reason = cpu.load()
needs_kernels = pytest.mark.skipif(_extension is None, reason=f"no C++ kernels: {_reason}")
LEVELS = [_extension.LEVEL_NAMES.index(name) for name in _extension.levels()] if _extension else []

CPU = torch.device("cpu")
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 4e-3, torch.int8: 2e-4}
"""Of the norm of attention, beside float64 over what the cache holds."""
CACHE_OPS = ("latent_cache_shape", "write_latent", "latent_attention", "copy_blocks")
SHAPES = [(14, 32, 16, 16), (3, 512, 64, 16), (20, 80, 32, 32), (3, 21, 8, 5), (13, 24, 12, 4)]
"""Heads, latent, rotary components, block size: three whose keys are read in place, two that are copied."""


@pytest.fixture(autouse=True)
def one_thread_afterwards():
    before = _extension.num_threads() if _extension else 1
    yield
    ops.set_num_threads(before)


def on(backend: str) -> ExitStack:
    """All ops that share the pool's layout on one backend."""
    stack = ExitStack()
    for op in CACHE_OPS:
        stack.enter_context(registry.override(op, backend))
    return stack


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cached(x: Tensor, kv_dtype: torch.dtype) -> Tensor:
    """What the cache holds of vectors x."""
    if kv_dtype != torch.int8:
        return x.to(kv_dtype).double()
    absmax = x.abs().amax(-1, keepdim=True)
    return (x * (127 / absmax)).round().double() * (absmax / 127).double()


class Requests:
    """Requests of known queries, latents and keys, in scattered blocks of a pool full of another's leftovers."""

    def __init__(self, lengths: list[int], shape: tuple[int, int, int, int], kv_dtype: torch.dtype) -> None:
        self.heads, self.latent_dim, self.rope_dim, self.block_size = shape
        self.lengths, self.scale = lengths, (self.latent_dim + self.rope_dim) ** -0.5
        self.q_latent = [randn(n, self.heads, self.latent_dim, seed=i) for i, n in enumerate(lengths)]
        self.q_rope = [randn(n, self.heads, self.rope_dim, seed=50 + i) for i, n in enumerate(lengths)]
        self.latent = [randn(n, self.latent_dim, seed=100 + i) for i, n in enumerate(lengths)]
        self.rope_key = [randn(n, self.rope_dim, seed=150 + i) for i, n in enumerate(lengths)]
        counts = [-(-n // self.block_size) for n in lengths]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(5)).int()
        sizes = self.block_size, self.latent_dim, self.rope_dim
        shape_of_pool = ops.latent_cache_shape(len(order), *sizes, CPU, kv_dtype)
        self.pool = torch.full(shape_of_pool, 77.0 if kv_dtype == torch.int8 else torch.nan).to(kv_dtype)
        self.tables = torch.zeros(len(lengths), max(counts) + 1, dtype=torch.int32)
        for i, blocks in enumerate(order.split(counts)):
            self.tables[i, : len(blocks)] = blocks
            positions = torch.arange(lengths[i])
            slots = self.tables[i, positions // self.block_size] * self.block_size + positions % self.block_size
            ops.write_latent(self.latent[i], self.rope_key[i], self.pool, slots)

    def attend(self, parts: list[tuple[int, int, int]], **options: int) -> Tensor:
        """parts: (request, first position, end) each -> rows in that order."""
        counts = torch.tensor([0] + [end - first for _, first, end in parts])
        return registry.select("latent_attention", CPU)(
            torch.cat([self.q_latent[i][first:end] for i, first, end in parts]),
            torch.cat([self.q_rope[i][first:end] for i, first, end in parts]),
            self.pool,
            self.tables[[i for i, _, _ in parts]],
            counts.cumsum(0).int(),
            torch.tensor([end for _, _, end in parts], dtype=torch.int32),
            self.scale,
            self.block_size,
            **options,
        )

    def exact(self, part: tuple[int, int, int], kv_dtype: torch.dtype) -> Tensor:
        """float64 attention of one part over what the cache holds."""
        i, first, end = part
        keys = torch.cat([cached(part[i][:end], kv_dtype) for part in (self.latent, self.rope_key)], -1)
        q = torch.cat((self.q_latent[i], self.q_rope[i]), -1)[first:end].double()
        hidden = torch.arange(first, end)[:, None] < torch.arange(end)
        weights = (torch.einsum("qhd,kd->hqk", q, keys) * self.scale).masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hqk,kc->qhc", weights, keys[:, : self.latent_dim])


@pytest.mark.parametrize("backend", registry.backends("latent_attention", CPU))
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_over_latents(backend, shape, kv_dtype):
    with on(backend):
        requests = Requests([540, 37, 16], shape, kv_dtype)
        parts = [(0, 539, 540), (1, 0, 37), (2, 15, 16), (0, 200, 225)]
        result = requests.attend(parts)
        expected = torch.cat([requests.exact(part, kv_dtype) for part in parts])
        tolerance = TOLERANCE[torch.float32 if backend == "reference" else kv_dtype]
        assert float((result - expected).norm() / expected.norm()) < tolerance
        if backend != "reference":
            alone = torch.cat([requests.attend([part]) for part in parts])
            assert torch.equal(alone, result)


@needs_kernels
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_levels_and_teams_give_the_same_bits(shape, kv_dtype):
    requests = Requests([300, 700], shape, kv_dtype)
    whole = requests.attend([(0, 0, 300)])
    for size in (1, 64):
        cuts = [(0, first, min(first + size, 300)) for first in range(0, 300, size)]
        assert torch.equal(requests.attend(cuts), whole)
    parts = [(1, 699, 700), (0, 290, 300), (1, 600, 601)]
    expected = requests.attend(parts, level=LEVELS[0])
    for threads, level in [(1, level) for level in LEVELS[1:]] + [(2, LEVELS[-1]), (5, LEVELS[-1])]:
        _extension.set_num_threads(threads)
        assert torch.equal(requests.attend(parts, level=level), expected)


@needs_kernels
@pytest.mark.parametrize("size", [512, 576, 640])
def test_long_int8_queries_stay_in_range(size):
    """All products of one sign and of the largest size: their integers add up to almost 2^31."""
    requests = Requests([5], (3, size - 64, 64, 16), torch.int8)
    for x in (*requests.q_latent, *requests.q_rope, *requests.latent, *requests.rope_key):
        x.fill_(1.0)
    for x in (*requests.latent, *requests.rope_key):
        x[:4] = -1.0
    ops.write_latent(requests.latent[0], requests.rope_key[0], requests.pool, requests.tables[0, 0] * 16 + torch.arange(5))
    torch.testing.assert_close(requests.attend([(0, 4, 5)]), torch.ones(1, 3, size - 64), rtol=1e-5, atol=0)


def test_who_sees_a_nan_becomes_one():
    requests = Requests([40, 30], (3, 32, 16, 16), torch.float32)
    expected = requests.attend([(0, 0, 40), (1, 29, 30)])
    slot = requests.tables[0, 1] * 16 + 4
    ops.write_latent(torch.full((1, 32), torch.nan), torch.zeros(1, 16), requests.pool, slot.view(1))
    result = requests.attend([(0, 0, 40), (1, 29, 30)])
    assert result[20:40].isnan().all()
    torch.testing.assert_close(result[:20], expected[:20])
    torch.testing.assert_close(result[40], expected[40])


# -- a matrix per head -----------------------------------------------------------------------------------------


def stack_of(num_heads: int, output_size: int, input_size: int) -> Tensor:
    return randn(num_heads * stacked_rows(output_size), input_size, seed=3)


@pytest.mark.parametrize("backend", registry.backends("head_linear", CPU))
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("tokens", "heads", "inputs", "outputs"), [(1, 3, 37, 70), (30, 2, 16, 32), (130, 3, 1, 9), (0, 2, 8, 8)]
)
def test_head_linear_is_linear_for_each_head(backend, name, tokens, heads, inputs, outputs):
    fused, stack = randn(tokens, heads * (inputs + 2), seed=1), stack_of(heads, outputs, inputs)
    x = fused[:, : heads * inputs].unflatten(1, (heads, inputs))
    with registry.override(None, backend):
        result = ops.head_linear(x, ops.pack_weight(stack, WeightFormat(name)), outputs)
        assert result.shape == (tokens, heads, outputs)
        for head, rows in enumerate(stack.unflatten(0, (heads, -1))):
            expected = ops.linear(x[:, head], ops.pack_weight(rows[:outputs].contiguous(), WeightFormat(name)))
            torch.testing.assert_close(result[:, head], expected, rtol=1e-5, atol=1e-4)
            if backend != "reference" and _extension.LEVEL_NAMES[LEVELS[-1]] != "avx512_amx":
                assert torch.equal(result[:, head], expected)


@needs_kernels
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_levels_and_teams_of_head_linear_agree(name):
    x, weight = randn(17, 3, 37, seed=1), ops.pack_weight(stack_of(3, 70, 37), WeightFormat(name))
    compute = registry.implementation("head_linear", "cpu")
    expected = compute(x, weight, 70, level=LEVELS[0])
    for threads, level in [(1, level) for level in LEVELS] + [(2, LEVELS[-1]), (5, LEVELS[-1])]:
        _extension.set_num_threads(threads)
        assert torch.equal(compute(x, weight, 70, level=level), expected)
        assert torch.equal(compute(x[5:6], weight, 70, level=level), expected[5:6])


def test_wrong_arguments_are_refused_before_memory_is_touched():
    x, stack = randn(2, 3, 16, seed=1), stack_of(3, 8, 16)
    message = "weight of head_linear must be one of float32, bfloat16, float16, without gate_up, got int8"
    with pytest.raises(ValueError, match=message):
        ops.head_linear(x, ops.pack_weight(stack, WeightFormat("int8")), 8)
    with pytest.raises(ValueError, match=r"must be a stack \[192, 16\] for x \[2, 3, 16\] and output_size 40, got \[96, 16\]"):
        ops.head_linear(x, ops.pack_weight(stack, WeightFormat("float32")), 40)


@needs_kernels
def test_wrong_pools_are_refused_before_memory_is_touched():
    requests = Requests([20], (3, 32, 16, 16), torch.float32)
    with pytest.raises(ValueError, match=r"cache must be dense \[2, 1, 40, 16\], got \[2, 1, 48, 16\]"):
        ops.write_latent(requests.latent[0], requests.rope_key[0][:, :8], requests.pool, torch.arange(20))
    with pytest.raises(ValueError, match=r"latent and rope_key must be \[T, C\] and \[T, R\] with T slots"):
        ops.write_latent(requests.latent[0], requests.rope_key[0], requests.pool, torch.arange(19))
    requests.q_rope[0] = requests.q_rope[0][:, :2]
    with pytest.raises(ValueError, match="q_latent and q_rope must have as many tokens and heads"):
        requests.attend([(0, 0, 20)])


# -- captured --------------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_captured_equals_op_by_op(name):
    heads, latent_dim, rope_dim, inputs = 3, 40, 16, 20
    width = heads * inputs + (heads + 1) * rope_dim + latent_dim
    table = ops.pack_weight(randn(50, width, seed=1), WeightFormat("float32"))
    up = ops.pack_weight(stack_of(heads, latent_dim, inputs), WeightFormat(name))
    pool = torch.zeros(ops.latent_cache_shape(8, 16, latent_dim, rope_dim, CPU))

    def forward(step):
        rows = ops.embedding(step.token_ids, table)
        q, q_rope, key, latent = rows.split((heads * inputs, heads * rope_dim, rope_dim, latent_dim), -1)
        ops.write_latent(latent, key, pool, step.slot_mapping)
        q_latent = ops.head_linear(q.unflatten(-1, (heads, -1)), up, latent_dim)
        batch = step.block_tables, step.query_start, step.seq_lens
        return ops.latent_attention(q_latent, q_rope.unflatten(-1, (heads, -1)), pool, *batch, 0.2, 16).flatten(1)

    program = capture_model(forward, lambda rows: rows, heads * latent_dim, 64, 8, CPU)
    tokens = torch.randint(0, 50, (2, 64), generator=torch.Generator().manual_seed(2)).int()
    tables = Tables(tokens, torch.tensor([[3, 1, 0, 6], [5, 2, 7, 4]], dtype=torch.int32), 16)
    steps = [Step(tables, [1, 0], [0, 0], [33, 17]), Step(tables, [1, 0], [33, 17], [1, 20])]
    expected = [forward(make_tensors(step, CPU)) for step in steps]
    stored = pool.clone()
    pool.zero_()
    for step, rows in zip(steps, expected):
        program.run(step)
        assert torch.equal(program.hidden(0, len(rows)), rows)
    assert torch.equal(pool, stored)
