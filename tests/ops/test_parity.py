"""One table over all ops: every backend against float64 arithmetic spelled out, on drawn odd shapes; and rows alone."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch import Tensor

from quire import ops
from quire.ops import registry
from quire.ops.activations import ACTIVATIONS

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def backends_of(op_name: str) -> list[str]:
    return registry.backends(op_name, CPU)


# -- naive float64 ---------------------------------------------------------------------------------------------


def naive_rms_norm(x, weight, eps, residual=None):
    x = x.double() if residual is None else (x + residual).double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def naive_layer_norm(x, weight, bias, eps, residual=None):
    x = x.double() if residual is None else (x + residual).double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double() + bias.double()


def naive_activation(x, name):
    if name == "gelu":
        return x * (1 + torch.special.erf(x / 2**0.5)) / 2
    if name == "gelu_tanh":
        return x * (1 + ((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()) / 2
    if name == "relu":
        return x.clamp(min=0)
    return x / (1 + (-(1.702 if name == "quick_gelu" else 1.0) * x).exp())


def naive_silu_and_mul(x):
    gate, up = x.double().chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


def naive_rotary(x, positions, table):
    half = table.shape[1] // 2
    out = x.double().clone()
    for t, position in enumerate(positions.tolist()):
        for i in range(half):
            cos, sin = table[position, i].double(), table[position, half + i].double()
            a, b = x[t, :, i].double(), x[t, :, half + i].double()
            out[t, :, i], out[t, :, half + i] = a * cos - b * sin, b * cos + a * sin
    return out


def naive_attention(q, keys, values, lengths, counts, scale, window, slopes=None, cap=None):
    """keys, values: one [length, KH, D] tensor per request."""
    rows, start = [], 0
    for k, v, length, count in zip(keys, values, lengths, counts):
        group = q.shape[1] // k.shape[1]
        for j in range(count):
            last = length - count + j
            first = 0 if window is None else max(0, last - window + 1)
            for head in range(q.shape[1]):
                seen = slice(first, last + 1)
                scores = k[seen, head // group].double() @ q[start + j, head].double() * scale
                if cap is not None:
                    scores = cap * (scores / cap).tanh()
                if slopes is not None:
                    scores = scores + slopes[head].double() * torch.arange(first - last, 1)
                rows.append(scores.softmax(0) @ v[seen, head // group].double())
        start += count
    return torch.stack(rows).view(q.shape) if rows else q.double()


# -- the table -------------------------------------------------------------------------------------------------

ELEMENTWISE = [
    pytest.param(op, backend, rows, size, dtype, id=f"{op}-{backend}-{rows}x{size}-{str(dtype)[6:]}")
    for op in (
        "rms_norm",
        "rms_norm_residual",
        "layer_norm",
        "layer_norm_residual",
        "soft_cap",
        "select_columns",
        "silu_and_mul",
        "linear",
        "linear_bias",
        "embedding",
    )
    for backend in backends_of(op.removesuffix("_residual").removesuffix("_bias"))
    for rows, size in ((0, 8), (1, 1), (1, 64), (3, 7), (17, 129), (64, 96), (150, 40))
    for dtype in DTYPES
]


def run_case(op: str, rows: int, size: int, dtype: torch.dtype, only: slice | None = None):
    """(result, expected) of one row of the table, on all rows or some."""
    only = only or slice(None)
    x = randn(rows, size, seed=1, dtype=dtype)[only]
    weight = randn(size, seed=2, dtype=dtype)
    if op == "rms_norm":
        return ops.rms_norm(x, weight, 1e-6), naive_rms_norm(x, weight, 1e-6)
    if op == "rms_norm_residual":
        residual = randn(rows, size, seed=3, dtype=dtype)[only]
        normed, total = ops.rms_norm(x, weight, 1e-6, residual)
        assert torch.equal(total, x + residual)
        return normed, naive_rms_norm(x, weight, 1e-6, residual)
    if op.startswith("layer_norm"):
        bias = randn(size, seed=6, dtype=dtype)
        if op == "layer_norm":
            return ops.layer_norm(x, weight, bias, 1e-5), naive_layer_norm(x, weight, bias, 1e-5)
        residual = randn(rows, size, seed=3, dtype=dtype)[only]
        normed, total = ops.layer_norm(x, weight, bias, 1e-5, residual)
        assert torch.equal(total, x + residual)
        return normed, naive_layer_norm(x, weight, bias, 1e-5, residual)
    if op == "soft_cap":
        return ops.soft_cap(x, 1.5), 1.5 * (x.double() / 1.5).tanh()
    if op == "select_columns":
        order = torch.randperm(size, generator=torch.Generator().manual_seed(7))
        return ops.select_columns(x, order), x.double()[:, order]
    if op == "silu_and_mul":
        x = randn(rows, 2 * size, seed=1, dtype=dtype)[only]
        return ops.silu_and_mul(x), naive_silu_and_mul(x)
    if op == "embedding":
        table, ids = randn(size, 5, seed=2, dtype=dtype), torch.arange(rows)[only] % size
        return ops.embedding(ids, table), table.double()[ids]
    matrix = randn(size + 3, size, seed=4, dtype=dtype) / size**0.5
    bias = randn(size + 3, seed=5, dtype=dtype) if op == "linear_bias" else None
    expected = x.double() @ matrix.double().T + (0 if bias is None else bias.double())
    return ops.linear(x, matrix, bias), expected


@pytest.mark.parametrize(("op", "backend", "rows", "size", "dtype"), ELEMENTWISE)
def test_rowwise_ops(op, backend, rows, size, dtype):
    name = op.removesuffix("_residual").removesuffix("_bias")
    with registry.override(name, backend):
        result, expected = run_case(op, rows, size, dtype)
        assert result.dtype == dtype
        assert result.shape == expected.shape
        torch.testing.assert_close(
            result.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype]
        )
        if rows > 1 and backend != "reference":
            alone, _ = run_case(op, rows, size, dtype, slice(rows // 2, rows // 2 + 1))
            assert torch.equal(alone, result[rows // 2 : rows // 2 + 1])


@pytest.mark.parametrize("backend", backends_of("linear"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_products(backend, dtype, name):
    x, matrix, bias = (randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(5, 40), (90, 40), (90,)]))
    with registry.override(None, backend):
        result, gated = ops.linear(x, matrix, bias, name), ops.gate_up_linear(x, matrix, bias, name)
        product = x.double() @ matrix.double().T + bias.double()
        gate, up = product.chunk(2, -1)
        for found, expected in ((result, naive_activation(product, name)), (gated, naive_activation(gate, name) * up)):
            assert found.dtype == dtype
            torch.testing.assert_close(
                found.double(), expected, rtol=4 * TOLERANCE[dtype], atol=40 * TOLERANCE[dtype]
            )
        with pytest.raises(ValueError, match="activation must be one of silu, gelu, .*, got 'mish'"):
            ops.linear(x, matrix, bias, "mish")


@pytest.mark.parametrize("backend", backends_of("layer_norm"))
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm_of_heads_with_weights_of_their_own(backend, has_bias):
    x, weight, bias = randn(5, 3, 21, seed=1), randn(3, 21, seed=2), randn(3, 21, seed=3)
    with registry.override("layer_norm", backend):
        result = ops.layer_norm(x, weight, bias if has_bias else None, 1e-5)
    expected = naive_layer_norm(x, weight, bias if has_bias else torch.zeros(3, 21), 1e-5)
    torch.testing.assert_close(result.double(), expected, rtol=2e-5, atol=4e-5)


@pytest.mark.parametrize("backend", backends_of("rotary_embedding"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "rotary"), [(4, 2, 8, 8), (3, 1, 80, 80), (2, 2, 96, 32)])
def test_rotary_embedding(backend, dtype, heads, kv_heads, head_dim, rotary):
    fused = randn(5, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    q, k, _ = fused.split((heads * head_dim, kv_heads * head_dim, kv_heads * head_dim), -1)
    q, k = q.unflatten(-1, (heads, head_dim)), k.unflatten(-1, (kv_heads, head_dim))
    positions = torch.tensor([0, 3, 19, 7, 7])
    angles = torch.outer(torch.arange(20.0), 100.0 ** -torch.linspace(0, 1, rotary // 2))
    table = torch.cat((angles.cos(), angles.sin()), -1)
    before = fused.clone()
    with registry.override("rotary_embedding", backend):
        turned = ops.rotary_embedding(q, k, positions, table)
        alone = ops.rotary_embedding(q[2:3], k[2:3], positions[2:3], table)
    assert torch.equal(fused, before)
    for result, x in zip(turned, (q, k)):
        expected = naive_rotary(x, positions, table)
        torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if backend == "reference":
        return
    assert torch.equal(alone[0], turned[0][2:3])
    assert torch.equal(alone[1], turned[1][2:3])


# -- the paged cache -------------------------------------------------------------------------------------------

LAYOUT_OPS = ("kv_cache_shape", "write_kv", "paged_attention", "copy_blocks")
LAYOUT_BACKENDS = [b for b in backends_of("paged_attention") if all(b in backends_of(op) for op in LAYOUT_OPS)]
WITH_SCALES = (torch.int8, torch.float8_e4m3fn)
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, *WITH_SCALES)
MIXES = {
    "one token": ([1], [1]),
    "decode": ([1, 16, 17, 33, 100, 64], [1] * 6),
    "prompts": ([5, 33, 16], [5, 33, 16]),
    "chunks and drafts": ([40, 17, 7, 90, 33], [8, 1, 4, 3, 33]),
    "nothing": ([], []),
}


class Paged:
    """Requests with drawn tokens in scattered blocks of a pool full of another's leftovers."""

    def __init__(self, lengths, counts, heads, kv_heads, head_dim, block_size, dtype, kv_dtype=None):
        kv_dtype = kv_dtype or dtype
        self.lengths, self.counts, self.block_size = lengths, counts, block_size
        self.keys = [randn(n, kv_heads, head_dim, seed=10 + i, dtype=dtype) for i, n in enumerate(lengths)]
        self.values = [randn(n, kv_heads, head_dim, seed=50 + i, dtype=dtype) for i, n in enumerate(lengths)]
        self.q = randn(sum(counts), heads, head_dim, seed=99, dtype=dtype)
        per_request = [-(-n // block_size) for n in lengths]
        order = torch.randperm(sum(per_request) + 3, generator=generator(7)).tolist()
        shapes = ops.kv_cache_shape(len(order), block_size, kv_heads, head_dim, CPU, kv_dtype)
        self.pools = [torch.full(shape, 99.0 if kv_dtype in WITH_SCALES else 1e4).to(kv_dtype) for shape in shapes]
        self.tables = torch.zeros(len(lengths), max(per_request, default=1) + 2, dtype=torch.int32)
        for i, (n, blocks) in enumerate(zip(lengths, per_request)):
            own, order = order[:blocks], order[blocks:]
            self.tables[i, :blocks] = torch.tensor(own)
            slots = torch.tensor([own[p // block_size] * block_size + p % block_size for p in range(n)])
            ops.write_kv(self.keys[i], self.values[i], *self.pools, slots)

    def attend(self, window=None, only=None, slopes=None, cap=None, causal=True):
        rows = range(len(self.lengths)) if only is None else [only]
        starts = [sum(self.counts[:i]) for i in range(len(self.counts) + 1)]
        q = self.q if only is None else self.q[starts[only] : starts[only + 1]]
        counts = torch.tensor([0, *(self.counts[i] for i in rows)])
        return ops.paged_attention(
            q,
            *self.pools,
            self.tables[list(rows)],
            counts.cumsum(0).int(),
            torch.tensor([self.lengths[i] for i in rows], dtype=torch.int32),
            q.shape[2] ** -0.5,
            window,
            self.block_size,
            slopes,
            cap,
            causal,
        )


def layout(backend):
    """All ops that share the pools' layout on one backend."""
    from contextlib import ExitStack

    stack = ExitStack()
    for op in LAYOUT_OPS:
        stack.enter_context(registry.override(op, backend))
    return stack


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "dtype"),
    [
        (4, 2, 8, 16, torch.float32),
        (3, 1, 80, 8, torch.float32),
        (5, 5, 96, 32, torch.bfloat16),
        (14, 2, 64, 16, torch.float16),
    ],
)
def test_paged_attention(backend, mix, window, heads, kv_heads, head_dim, block_size, dtype):
    lengths, counts = MIXES[mix]
    with layout(backend):
        paged = Paged(lengths, counts, heads, kv_heads, head_dim, block_size, dtype)
        result = paged.attend(window)
        scale = head_dim**-0.5
        expected = naive_attention(paged.q, paged.keys, paged.values, lengths, counts, scale, window)
        torch.testing.assert_close(
            result.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype]
        )
        start = 0
        for i, count in enumerate(counts if backend != "reference" else []):
            assert torch.equal(paged.attend(window, only=i), result[start : start + count])
            start += count


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
@pytest.mark.parametrize("lengths", [[1], [5, 33, 1, 16], [300, 7, 513]], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size"), [(4, 4, 24, 16), (6, 2, 80, 8)])
def test_attention_both_ways(backend, lengths, heads, kv_heads, head_dim, block_size):
    """Every token sees its whole request, and a request's rows are the same to the last bit alone."""
    with layout(backend):
        paged = Paged(lengths, lengths, heads, kv_heads, head_dim, block_size, torch.float32)
        result = paged.attend(causal=False)
        start = 0
        for i, n in enumerate(lengths):
            q, k, v = (x.double() for x in (paged.q[start : start + n], paged.keys[i], paged.values[i]))
            k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
            weights = (torch.einsum("qhd,khd->hqk", q, k) * head_dim**-0.5).softmax(-1)
            expected = torch.einsum("hqk,khd->qhd", weights, v)
            torch.testing.assert_close(result[start : start + n].double(), expected, rtol=2e-5, atol=1e-5)
            if backend != "reference":
                assert torch.equal(paged.attend(causal=False, only=i), result[start : start + n])
            start += n
        with pytest.raises(ValueError, match="without causal"):
            paged.attend(window=3, causal=False)


CACHE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 8e-3, torch.int8: 1e-3, torch.float8_e4m3fn: 8e-3}
"""Of attention, beside a float64 one over what the cache holds: in the last three, queries and weights are rounded too."""


def through_cache(x, kv_dtype):
    """What a pool of that type keeps of x."""
    if kv_dtype not in WITH_SCALES:
        return x.to(kv_dtype)
    absmax = x.float().abs().amax(-1, keepdim=True)
    if kv_dtype == torch.float8_e4m3fn:
        scale = torch.exp2((absmax.double() / 448).log2().ceil())
        return (x / scale.float()).to(kv_dtype).double() * scale
    return (x.float() * (127 / absmax)).round().double() * (absmax / 127)


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize(("alibi", "cap", "window"), [(False, None, None), (True, None, 20), (False, 3.0, None), (True, 3.0, 7)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size"), [(14, 2, 64, 16), (6, 3, 24, 8), (2, 2, 20, 4)])
def test_scores_and_types_of_the_cache(backend, kv_dtype, alibi, cap, window, heads, kv_heads, head_dim, block_size):
    lengths, counts = MIXES["chunks and drafts"]
    slopes = 2.0 ** -torch.linspace(1, 8, heads) if alibi else None
    with layout(backend):
        paged = Paged(lengths, counts, heads, kv_heads, head_dim, block_size, torch.float32, kv_dtype)
        assert [pool.dtype for pool in paged.pools] == [kv_dtype] * 2
        result = paged.attend(window, slopes=slopes, cap=cap)
        keys, values = ([through_cache(x, kv_dtype) for x in side] for side in (paged.keys, paged.values))
        expected = naive_attention(paged.q, keys, values, lengths, counts, head_dim**-0.5, window, slopes, cap)
        tolerance = 2e-5 if backend == "reference" else CACHE_TOLERANCE[kv_dtype]
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
@pytest.mark.parametrize("kv_dtype", WITH_SCALES, ids=str)
def test_blocks_are_copied_with_their_scales(backend, kv_dtype):
    with layout(backend):
        paged = Paged([33], [1], 4, 2, 16, 16, torch.float32, kv_dtype)
        expected = paged.attend()
        blocks = paged.tables[0, :3].long()
        free = torch.tensor([b for b in range(paged.pools[0].shape[0]) if b not in blocks])[:3]
        for pool in paged.pools:
            ops.copy_blocks(pool, pool, torch.stack((blocks, free), 1))
            pool.view(torch.uint8)[blocks] = 0
        paged.tables[0, :3] = free
        assert torch.equal(paged.attend(), expected)


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
def test_a_cache_of_another_type_is_refused(backend):
    message = r"dtype of a KV cache must be one of .*int8, float8_e4m3fn, got torch.int16"
    with layout(backend), pytest.raises(ValueError, match=message):
        ops.kv_cache_shape(6, 16, 2, 8, CPU, torch.int16)


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 5])
def test_a_stale_nan_stays_where_it_is(backend, kv_dtype, block_size):
    """Unused slots of a request's blocks may hold anything; only the request that wrote a NaN may see it."""
    with layout(backend):
        paged = Paged([4, 29, 37], [1, 1, 8], 4, 2, 16, block_size, torch.float32, kv_dtype)
        expected = paged.attend()
        unused = torch.full((1, 2, 16), float("nan"))
        for row, length in enumerate(paged.lengths):
            slot = int(paged.tables[row, length // block_size]) * block_size + length % block_size
            ops.write_kv(unused, unused, *paged.pools, torch.tensor([slot]))
        torch.testing.assert_close(paged.attend(), expected)


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
@pytest.mark.parametrize("pool", [0, 1])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
def test_who_sees_a_nan_becomes_one(backend, pool, kv_dtype):
    """Later tokens of its request, and no other request, whether it is in a key or in a value."""
    with layout(backend):
        paged = Paged([30, 40], [1, 40], 4, 2, 16, 16, torch.float32, kv_dtype)
        expected = paged.attend()
        slot = int(paged.tables[1, 1]) * 16 + 4
        both = [paged.keys[1][20:21], paged.values[1][20:21]]
        both[pool] = torch.full((1, 2, 16), float("nan"))
        ops.write_kv(*both, *paged.pools, torch.tensor([slot]))
        result = paged.attend()
    assert result[21:].isnan().all()
    torch.testing.assert_close(result[0], expected[0])


@pytest.mark.parametrize("backend", LAYOUT_BACKENDS)
def test_copy_blocks_reads_before_it_writes(backend):
    with layout(backend):
        shape, _ = ops.kv_cache_shape(6, 4, 2, 8, CPU)
        pool = torch.arange(6.0).view(6, *[1] * (len(shape) - 1)).expand(shape).clone()
        ops.copy_blocks(pool, pool, torch.tensor([[0, 1], [1, 2], [5, 0]]))
        assert pool.flatten(1)[:, 0].tolist() == [5, 0, 1, 3, 4, 5]
        host = torch.zeros(shape)
        ops.copy_blocks(pool, host, torch.tensor([[4, 2]]))
        assert host.flatten(1)[:, 0].tolist() == [0, 0, 4, 0, 0, 0]


@pytest.mark.parametrize("backend", backends_of("allocate"))
def test_allocated_memory_is_zero_and_taken_when_written(backend):
    with registry.override("allocate", backend):
        before = resident_bytes()
        pool = ops.allocate((256, 1024, 1024), torch.bfloat16, CPU)
        assert pool.shape == (256, 1024, 1024) and pool.dtype == torch.bfloat16
        assert resident_bytes() - before < 64 * 2**20
        assert float(pool[::17, 5].abs().sum()) == 0
        if backend == "cpu":  # numpy asks for huge pages, of which 64 scattered numbers take 128 MB
            pool[::4, 0, 0] = 1.0
            assert resident_bytes() - before < 64 * 2**20
        assert ops.allocate((0, 3), torch.float32, CPU).shape == (0, 3)


def resident_bytes() -> int:
    return psutil.Process().memory_info().rss


def test_every_op_has_a_reference():
    assert {op: "reference" for op in registry.table(CPU)} == {
        op: registry.backends(op, CPU)[-1] for op in registry.table(CPU)
    }


def test_override_ends_and_unknown_names_are_refused():
    with registry.override():
        assert set(registry.table(CPU).values()) == {"reference"}
    with pytest.raises(ValueError, match="backend must be one of"):
        registry.register("rms_norm", "abacus")
    with pytest.raises(LookupError, match="no op fly"):
        registry.implementation("fly", "reference")
