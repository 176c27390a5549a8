"""Paged attention: decode rows and prompt chunks over contexts of many lengths, in every type of KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.kernels.measure import Case, Work, make_inputs, make_step, nothing, num_copies, with_forward
from benchmarks.kernels.models import Dimensions
from quire import ops
from quire.ops.capture import StepTensors

KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
CHUNK = 512
"""Prompt tokens of a step."""

_BLOCK_SIZE = 16
_CPU = torch.device("cpu")


def cases(
    model: str, dimensions: Dimensions, contexts: Sequence[int], kv_dtypes: Sequence[str], rows: Sequence[int]
) -> Iterator[Case]:
    """Decode with each number of requests in `rows` that is no prompt's, and a chunk of a prompt, at each context."""
    for context in contexts:
        for dtype in kv_dtypes:
            for num_requests in rows:
                if num_requests < CHUNK:
                    yield decode_case(model, dimensions, num_requests, context, dtype)
            yield prefill_case(model, dimensions, min(CHUNK, context), context, dtype)


def decode_case(model: str, dimensions: Dimensions, num_requests: int, context: int, dtype: str) -> Case:
    """One new token of each of `num_requests` requests, all of `context` tokens."""
    detail = f"decode KV {dtype} R={num_requests} context={context}"
    operations = 4.0 * num_requests * context * dimensions.num_heads * dimensions.head_dim
    return _case(model, dimensions, detail, [1] * num_requests, context, dtype, operations)


def prefill_case(model: str, dimensions: Dimensions, num_tokens: int, context: int, dtype: str) -> Case:
    """The last `num_tokens` tokens of a prompt of `context` tokens."""
    detail = f"prefill KV {dtype} T={num_tokens} context={context}"
    seen = num_tokens * (context - num_tokens) + num_tokens * (num_tokens + 1) / 2
    operations = 4.0 * seen * dimensions.num_heads * dimensions.head_dim
    return _case(model, dimensions, detail, [num_tokens], context, dtype, operations)


def _case(
    model: str, dimensions: Dimensions, detail: str, num_queries: list[int], context: int, dtype: str, operations: float
) -> Case:
    num_requests, num_tokens = len(num_queries), sum(num_queries)
    blocks_each = -(-context // _BLOCK_SIZE)
    pools = _Pools(dimensions, num_requests * blocks_each, KV_DTYPES[dtype], many=num_tokens == num_requests)
    step = make_step(
        num_tokens,
        block_tables=torch.randperm(num_requests * blocks_each).int().view(num_requests, blocks_each),
        query_start=torch.tensor([0, *num_queries]).cumsum(0).int(),
        seq_lens=torch.full((num_requests,), context, dtype=torch.int32),
    )
    q_size = dimensions.num_heads * dimensions.head_dim
    embedding = make_inputs(q_size)
    work = Work(num_bytes=pools.num_bytes + 8 * num_tokens * q_size, operations=operations)

    def forward(step: StepTensors) -> Tensor:
        q = ops.embedding(step.token_ids, embedding).view(num_tokens, dimensions.num_heads, dimensions.head_dim)
        for k_cache, v_cache in pools.copies:
            out = ops.paged_attention(
                q,
                k_cache,
                v_cache,
                step.block_tables,
                step.query_start,
                step.seq_lens,
                scale=dimensions.head_dim**-0.5,
                block_size=_BLOCK_SIZE,
            )
        return out.view(num_tokens, q_size)

    return with_forward(Case("attention", model, detail, work, len(pools.copies), nothing), forward, step)


class _Pools:
    """Filled key and value pools; with `many`, as many as the last-level cache cannot hold."""

    def __init__(self, dimensions: Dimensions, num_blocks: int, dtype: torch.dtype, many: bool) -> None:
        heads, width = dimensions.num_kv_heads, dimensions.head_dim
        k_shape, v_shape = ops.kv_cache_shape(num_blocks, _BLOCK_SIZE, heads, width, _CPU, dtype)
        slots = torch.arange(num_blocks * _BLOCK_SIZE)
        keys = torch.randn(len(slots), heads, width)
        first = torch.zeros(k_shape, dtype=dtype), torch.zeros(v_shape, dtype=dtype)
        ops.write_kv(keys, keys, *first, slots)
        self.num_bytes = sum(pool.numel() * pool.element_size() for pool in first)
        count = num_copies(self.num_bytes, 1000) if many else 1
        self.copies = [first, *((first[0].clone(), first[1].clone()) for _ in range(count - 1))]
