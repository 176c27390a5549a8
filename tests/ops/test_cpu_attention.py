"""The C++ attention, rotary and activation kernels: long contexts, and the same bits in every batch, chunk, team and level."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from quire import ops
from quire.ops import cpu

_extension, _reason = cpu.load()
if _extension is None:
    pytest.skip(f"no C++ kernels: {_reason}", allow_module_level=True)

attention = importlib.import_module("quire.ops.cpu.attention")
rotary = importlib.import_module("quire.ops.cpu.rotary")
activation = importlib.import_module("quire.ops.cpu.activation")
kv_pools = importlib.import_module("quire.ops.cpu.kv_pools")
common = importlib.import_module("quire.ops.cpu.extension")

CPU = torch.device("cpu")
LEVELS = [_extension.LEVEL_NAMES.index(name) for name in _extension.levels()]
KV_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn]
SHAPES = [(14, 2, 64, 16), (4, 4, 16, 32), (5, 1, 80, 8), (26, 2, 20, 5)]
"""Query heads, KV heads, head size, block size: two that are read in place, two that are copied."""


@pytest.fixture(autouse=True)
def one_thread_afterwards():
    before = _extension.num_threads()
    yield
    _extension.set_num_threads(before)


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Requests:
    """Requests of known queries, keys and values, all in the cache; any part of them can be asked for."""

    def __init__(self, lengths, shape, kv_dtype):
        self.heads, self.kv_heads, self.head_dim, self.block_size = shape
        self.lengths = lengths
        self.q = [randn(n, self.heads, self.head_dim, seed=i) for i, n in enumerate(lengths)]
        self.k = [randn(n, self.kv_heads, self.head_dim, seed=100 + i) for i, n in enumerate(lengths)]
        self.v = [randn(n, self.kv_heads, self.head_dim, seed=200 + i) for i, n in enumerate(lengths)]
        counts = [-(-n // self.block_size) for n in lengths]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(5)).int()
        shapes = ops.kv_cache_shape(len(order), self.block_size, self.kv_heads, self.head_dim, CPU, kv_dtype)
        self.pools = [torch.zeros(s, dtype=kv_dtype) for s in shapes]
        self.tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
        for i, blocks in enumerate(order.split(counts)):
            self.tables[i, : len(blocks)] = blocks
            self.write(i)

    def write(self, i):
        """Keys and values of request i, into the cache."""
        positions = torch.arange(self.lengths[i])
        slots = self.tables[i, positions // self.block_size] * self.block_size + positions % self.block_size
        ops.write_kv(self.k[i], self.v[i], *self.pools, slots)

    def attend(self, parts, level=None, **options):
        """parts: (request, first position, end) each -> rows in that order."""
        counts = torch.tensor([0] + [end - first for _, first, end in parts])
        return attention.paged_attention(
            torch.cat([self.q[i][first:end] for i, first, end in parts]),
            *self.pools,
            self.tables[[i for i, _, _ in parts]],
            counts.cumsum(0).int(),
            torch.tensor([end for _, _, end in parts], dtype=torch.int32),
            self.head_dim**-0.5,
            block_size=self.block_size,
            level=attention.LEVEL if level is None else level,
            **options,
        )


def exact(q, k, v, window=None):
    """float64 causal attention of the last len(q) of len(k) tokens."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * q.shape[2] ** -0.5
    distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    hidden = (distance < 0) | (distance >= (window or len(k)))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 300])
def test_long_contexts(shape, window):
    requests = Requests([1100, 513, 256], shape, torch.float32)
    parts = [(0, 1099, 1100), (1, 450, 513), (2, 0, 256), (0, 700, 1000)]
    result = requests.attend(parts, sliding_window=window)
    expected = [
        exact(requests.q[i][first:end], requests.k[i][:end], requests.v[i][:end], window)
        for i, first, end in parts
    ]
    torch.testing.assert_close(result.double(), torch.cat(expected), rtol=2e-5, atol=1e-5)


def cached(x, kv_dtype):
    """What the cache holds of x."""
    if kv_dtype not in (torch.int8, torch.float8_e4m3fn):
        return x.to(kv_dtype).double()
    absmax = x.abs().amax(-1, keepdim=True)
    if kv_dtype == torch.float8_e4m3fn:
        scale = torch.where(absmax > 0, torch.exp2((absmax.double() / 448).log2().ceil()), 1.0)
        return (x / scale.float()).to(kv_dtype).double() * scale
    return (x * torch.where(absmax > 0, 127 / absmax, 0)).round().double() * (absmax / 127).double()


def relative_error(requests, kv_dtype):
    """Of the last 40 tokens' attention, beside float64 over what the cache holds."""
    expected = exact(requests.q[0], cached(requests.k[0], kv_dtype), cached(requests.v[0], kv_dtype))[-40:]
    result = requests.attend([(0, requests.lengths[0] - 40, requests.lengths[0])]).double()
    return float((result - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("kv_dtype", "limit", "outlier_limit"),
    [(torch.bfloat16, 3e-3, 1e-2), (torch.float8_e4m3fn, 3e-3, 1e-2), (torch.int8, 2e-4, 1e-3)],
)
@pytest.mark.parametrize(
    "shape",
    [(7, 1, 64, 16), (8, 1, 80, 8), (4, 4, 96, 32), (4, 1, 72, 16), (8, 2, 128, 16), (3, 3, 21, 7), (2, 1, 512, 16)],
    ids=str,
)
def test_rounded_queries_and_weights_stay_close(shape, kv_dtype, limit, outlier_limit):
    """int8 keeps sixteen bits of both, so that a channel of a query may be 30 times larger than the others."""
    requests = Requests([700], shape, kv_dtype)
    assert relative_error(requests, kv_dtype) < limit
    channels = [randn(shape[2], seed=seed) for seed in (30, 31)]
    for x, large in zip((requests.q[0], requests.k[0]), channels):
        x[..., large.argmax()] *= 30
    requests.write(0)
    assert relative_error(requests, kv_dtype) < outlier_limit


@pytest.mark.parametrize(
    ("kv_dtype", "limit"), [(torch.bfloat16, 2e-3), (torch.float8_e4m3fn, 2e-3), (torch.int8, 5e-4)], ids=str
)
@pytest.mark.parametrize("length", [250, 4000])
def test_a_peak_does_not_drown_a_flat_rest(kv_dtype, limit, length):
    """Half of the attention is one token's, the other half all others': each of them less than a 510th of the largest where
    there are many."""
    requests = Requests([length], (2, 1, 16, 16), kv_dtype)
    q, k, v = requests.q[0], requests.k[0], requests.v[0]
    q.fill_(1), k.fill_(0), v.fill_(1)
    k[length // 2] = math.log(length - 1) / 4
    v[length // 2] = -0.9
    requests.write(0)
    expected = exact(q[-1:], cached(k, kv_dtype), cached(v, kv_dtype))
    assert abs(float(expected.min())) < 0.25  # the halves nearly cancel
    torch.testing.assert_close(requests.attend([(0, length - 1, length)]).double(), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
def test_a_query_of_zeros_sees_the_mean(kv_dtype):
    requests = Requests([300], (6, 2, 32, 16), kv_dtype)
    requests.q[0].zero_()
    result = requests.attend([(0, 290, 300)], sliding_window=270)
    expected = [cached(requests.v[0], kv_dtype)[p - 269 : p + 1].mean(0).repeat_interleave(3, 0) for p in range(290, 300)]
    torch.testing.assert_close(result.double(), torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_cut_into_chunks_gives_the_same_bits(shape, kv_dtype):
    length = 530
    requests = Requests([length, 77], shape, kv_dtype)
    options = dict(sliding_window=290, alibi_slopes=randn(shape[0], seed=9).abs() / 50, soft_cap=20.0)
    for chosen in ({}, options):
        whole = requests.attend([(0, 0, length)], **chosen)
        for size in (1, 16, 64, 512):
            cuts = [(0, first, min(first + size, length)) for first in range(0, length, size)]
            batches = [requests.attend([part], **chosen) for part in cuts]
            assert torch.equal(torch.cat(batches), whole), size
        mixed = [(1, 76, 77), (0, 0, 100), (0, 100, 101), (1, 0, 50), (0, 101, length)]
        parts = dict(zip(mixed, requests.attend(mixed, **chosen).split([1, 100, 1, 50, length - 101])))
        assert torch.equal(torch.cat([parts[part] for part in mixed if part[0] == 0]), whole)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "parts",
    [
        [(0, 1499, 1500)],  # one sequence: its chunks are split
        [(0, 1499, 1500), (1, 39, 40), (1, 299, 300), (0, 1099, 1100)],
        [(1, 0, 300), (0, 1499, 1500), (0, 900, 960)],
    ],
    ids=["one long", "uneven", "mixed"],
)
def test_any_number_of_threads_gives_the_same_bits(parts, shape, kv_dtype):
    requests = Requests([1500, 300], shape, kv_dtype)
    results = []
    for threads in (1, 2, 3, 5):
        _extension.set_num_threads(threads)
        results += [requests.attend(parts), requests.attend(parts, sliding_window=600)]
    for plain, windowed in zip(results[2::2], results[3::2]):
        assert torch.equal(plain, results[0])
        assert torch.equal(windowed, results[1])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 2, 32, 16), (13, 1, 20, 8), (4, 1, 72, 16), (8, 1, 96, 32), (3, 3, 21, 7)], ids=str)
def test_levels_agree_bit_for_bit(shape, kv_dtype):
    requests = Requests([300, 40], shape, kv_dtype)
    parts = [(0, 299, 300), (1, 0, 40), (0, 250, 270)]
    slopes = randn(shape[0], seed=9).abs() / 10
    for options in ({}, dict(alibi_slopes=slopes, soft_cap=2.0, sliding_window=33)):
        first, *others = [requests.attend(parts, level, **options) for level in LEVELS]
        assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "rotary_dim", "block_size"), [(64, 64, 16), (80, 40, 8), (10, 6, 5)])
def test_rotary_and_write_in_one_is_each_op_alone(kv_dtype, head_dim, rotary_dim, block_size):
    tokens, heads, kv_heads = 9, 6, 2
    width = (heads + 2 * kv_heads) * head_dim
    angles = randn(50, rotary_dim // 2, seed=3)
    table = torch.cat((angles.cos(), angles.sin()), 1)
    positions = torch.arange(7, 7 + tokens)
    slots = torch.randperm(4 * block_size, generator=torch.Generator().manual_seed(1))[:tokens]
    shapes = ops.kv_cache_shape(4, block_size, kv_heads, head_dim, CPU, kv_dtype)
    pools, fused_pools = ([torch.zeros(s, dtype=kv_dtype) for s in shapes] for _ in range(2))
    rows = randn(tokens, width, seed=2)

    def heads_of(x):
        sizes = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
        return [part.unflatten(1, (-1, head_dim)) for part in x.split(sizes, 1)]

    q, k, v = heads_of(rows)
    turned = [rotary.rotary_embedding_at_level(q, k, positions, table, level) for level in LEVELS]
    assert all(torch.equal(a, b) for pair in turned for a, b in zip(pair, turned[0]))
    ops.write_kv(turned[0][1], v, *pools, slots)
    for level in LEVELS:
        other = [torch.zeros_like(pool) for pool in pools]
        rotary.write_kv_at_level(turned[0][1], v, *other, slots, level)
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(other, pools))

    layout = _extension.BatchLayout()
    layout.set(tokens, 1, 4, 0, positions.data_ptr(), slots.data_ptr(), 0, 0, 0)
    view = kv_pools.view_pools(*fused_pools, block_size, head_dim)
    q_rows, k_rows, v_rows = (common.rows_of(x) for x in (q, k, v))
    for threads in (1, 3):
        _extension.set_num_threads(threads)
        rows.copy_(randn(tokens, width, seed=2))
        rotary.rotary_and_write(q_rows, q_rows, heads, k_rows, v_rows, table, view, layout).run()
        assert torch.equal(q, turned[0][0])  # in place
        assert torch.equal(k, heads_of(randn(tokens, width, seed=2))[1])
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(fused_pools, pools))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 2 * 1337), (5, 2), (3, 2 * 512), (2, 3, 2 * 33), (0, 8)], ids=str)
def test_silu_and_mul_levels_agree(shape, dtype):
    x = (randn(*shape, seed=4) * 20).to(dtype)
    results = []
    for threads in (1, 3):
        _extension.set_num_threads(threads)
        results += [activation.silu_and_mul_at_level(x, level) for level in LEVELS]
    assert all(torch.equal(result, results[0]) for result in results)


def test_wrong_arguments_are_refused_before_memory_is_touched():
    requests = Requests([20], (4, 2, 16, 16), torch.float32)
    with pytest.raises(ValueError, match="sliding_window must be at least 1, or None, got 0"):
        requests.attend([(0, 0, 20)], sliding_window=0)
    with pytest.raises(ValueError, match=r"soft_cap must be above 0, or None, got -1\.0"):
        requests.attend([(0, 0, 20)], soft_cap=-1.0)
    with pytest.raises(ValueError, match=r"alibi_slopes must have shape \[4\], got \[3\]"):
        requests.attend([(0, 0, 20)], alibi_slopes=torch.ones(3))
    with pytest.raises(ValueError, match=r"v_cache must be dense \[2, 2, 16, 16\]"):
        kv_pools.view_pools(requests.pools[0], requests.pools[1][:1], 16, 16)
    with pytest.raises(ValueError, match=r"k and v must be \[T, 2, D\] with T slots"):
        ops.write_kv(requests.k[0][:, :1], requests.v[0][:, :1], *requests.pools, torch.arange(20))
    with pytest.raises(ValueError, match="cos_sin_cache must have an even width of at most head_dim = 16"):
        ops.rotary_embedding(requests.q[0], requests.k[0], torch.arange(20), torch.ones(30, 32))
    with pytest.raises(ValueError, match="x must have an even last dimension"):
        ops.silu_and_mul(torch.ones(2, 3))
