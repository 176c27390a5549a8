"""The key/value pools of one rank, on the device and on the host: their size, and copies of blocks between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire import ops, parallel, platform
from quire.config.types import EngineConfig, HFConfig, KVCacheSpec
from quire.errors import ConfigError
from quire.log import get_logger

_logger = get_logger(__name__)

CPU_SHARE_OF_FREE_MEMORY = 0.5
"""Part of the memory that is free after loading which the pool takes on a CPU, unless told otherwise."""

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
}
"""By the names of kv_cache_dtype."""

_WITH_SCALES = (torch.int8, torch.float8_e4m3fn)
"""One float32 per token and head."""

Pools = list[tuple[Tensor, ...]]
"""Of each layer: one of keys and one of values, or one of latents."""
BlockPairs = Sequence[tuple[int, int]]


class KVCache:
    """The pools of every layer; `spec` says how many blocks each tier has."""

    def __init__(self, spec: KVCacheSpec, hf: HFConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.device_pools = _make_pools(spec.num_blocks, spec.block_size, hf, dtype, device, layout=device)
        self.host_pools: Pools = []
        if spec.num_host_blocks:
            host = torch.device("cpu")
            self.host_pools = _make_pools(
                spec.num_host_blocks, spec.block_size, hf, dtype, host, layout=device
            )

    def swap_out(self, pairs: BlockPairs) -> None:
        """Copy (device block, host block) pairs to the host."""
        _copy(self.device_pools, self.host_pools, pairs)

    def swap_in(self, pairs: BlockPairs) -> None:
        """Copy (host block, device block) pairs to the device."""
        _copy(self.host_pools, self.device_pools, pairs)

    def copy(self, pairs: BlockPairs) -> None:
        """Copy (source, destination) pairs within the device."""
        _copy(self.device_pools, self.device_pools, pairs)


def bytes_per_block(hf: HFConfig, dtype: torch.dtype, block_size: int) -> int:
    """Bytes of one block: what this rank keeps of its tokens in all layers."""
    scale_bytes = 4 if dtype in _WITH_SCALES else 0
    sizes = hf.cached_vectors(parallel.tensor_size())
    return hf.num_hidden_layers * block_size * sum(size * dtype.itemsize + scale_bytes for size in sizes)


def plan_kv_cache(config: EngineConfig, device: torch.device, free_bytes: int | None = None) -> KVCacheSpec:
    """How many blocks to reserve; call it when the weights are loaded. `free_bytes`: memory that the pool may take.

    Never more than max_num_seqs requests of full length can use. Raises ConfigError when not even one fits.
    """
    cache, limits = config.cache, config.scheduler
    hf, dtype = config.model.hf, cache_dtype(config)
    size = bytes_per_block(hf, dtype, cache.block_size)
    blocks_per_request = -(-limits.max_model_len // cache.block_size)
    if cache.num_blocks_override is not None:
        num_blocks = cache.num_blocks_override
    else:
        memory = cache.kv_cache_memory_bytes
        if memory is None:
            memory = _free_for_cache(config, device) if free_bytes is None else free_bytes
        num_blocks = min(memory // size, _most_blocks(config, blocks_per_request))
    if num_blocks < blocks_per_request:
        raise ConfigError(_too_small(num_blocks, blocks_per_request, size, config, device))
    spec = KVCacheSpec(num_blocks, cache.swap_space_bytes // size, cache.block_size, size)
    _logger.info(
        "KV cache: %d blocks of %d tokens (%.2f GiB) on %s and %d on the host; %.1f requests of %d tokens fit",
        spec.num_blocks,
        spec.block_size,
        spec.num_blocks * size / 2**30,
        device,
        spec.num_host_blocks,
        num_blocks / blocks_per_request,
        limits.max_model_len,
    )
    return spec


def _most_blocks(config: EngineConfig, blocks_per_request: int) -> int:
    """What all seats can use; of an encoder, whose requests last one step, what one step can, and the block that stays empty."""
    limits, pooling = config.scheduler, config.model.pooling
    most = blocks_per_request * limits.max_num_seqs
    if pooling is not None and pooling.is_encoder:
        most = min(most, limits.max_num_batched_tokens // config.cache.block_size + limits.max_num_seqs) + 1
    return max(most, blocks_per_request)


def cache_dtype(config: EngineConfig) -> torch.dtype:
    """The pools' element type."""
    name = config.cache.kv_cache_dtype
    dtype = _DTYPES.get(config.model.dtype if name == "auto" else name)
    if dtype is None:
        raise ConfigError(f"kv_cache_dtype must be auto or one of {', '.join(_DTYPES)}, got {name!r}")
    if dtype == torch.float8_e4m3fn and config.model.hf.kv_lora_rank is not None:
        raise ConfigError(f"kv_cache_dtype {name} is not supported for a cache of latents (DeepSeek): use int8 or bfloat16")
    return dtype


def _free_for_cache(config: EngineConfig, device: torch.device) -> int:
    if device.type == "cpu":
        return int(platform.available_memory_bytes() * CPU_SHARE_OF_FREE_MEMORY)
    free, total = torch.cuda.mem_get_info(device)
    wanted = int(total * config.cache.gpu_memory_utilization) - (total - free)
    return max(0, wanted - _activation_bytes(config))


def _activation_bytes(config: EngineConfig) -> int:
    """A generous estimate of what one step needs beside weights and cache."""
    hf, limits = config.model.hf, config.scheduler
    width = 4 * hf.hidden_size + 3 * hf.intermediate_size
    width += 3 * (hf.num_attention_heads + 2 * hf.num_key_value_heads) * hf.head_dim
    tokens, logit_rows = limits.max_num_batched_tokens, limits.max_num_seqs + 256
    return tokens * width * getattr(torch, config.model.dtype).itemsize + logit_rows * hf.vocab_size * 8


def _too_small(num_blocks: int, needed: int, size: int, config: EngineConfig, device: torch.device) -> str:
    if config.cache.num_blocks_override is not None:
        knob = "num_gpu_blocks_override"
    elif config.cache.kv_cache_memory_bytes is not None or device.type == "cpu":
        knob = "kv_cache_memory_bytes"
    else:
        knob = "gpu_memory_utilization"
    return (
        f"the KV cache has room for {num_blocks} blocks ({_size(num_blocks * size)}), but one request of "
        f"max_model_len={config.scheduler.max_model_len} needs {needed} ({_size(needed * size)}): "
        f"raise {knob} or lower max_model_len"
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.2f} MiB"


def _make_pools(
    num_blocks: int,
    block_size: int,
    hf: HFConfig,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.device,
) -> Pools:
    """The pools of each layer on `device`, shaped as ops on device `layout` want; memory is touched lazily."""
    shapes: tuple[tuple[int, ...], ...]
    if hf.kv_lora_rank is not None:
        shapes = (ops.latent_cache_shape(num_blocks, block_size, hf.kv_lora_rank, hf.rotary_dim, layout, dtype),)
    else:
        num_kv_heads = len(hf.cached_vectors(parallel.tensor_size())) // 2
        shapes = ops.kv_cache_shape(num_blocks, block_size, num_kv_heads, hf.head_dim, layout, dtype)
    pinned = device.type == "cpu" and layout.type == "cuda"

    def zeros(shape: tuple[int, ...]) -> Tensor:
        if pinned:
            return torch.zeros(shape, dtype=dtype, pin_memory=True)
        return ops.allocate(shape, dtype, device)

    return [tuple(zeros(shape) for shape in shapes) for _ in range(hf.num_hidden_layers)]


def _copy(sources: Pools, destinations: Pools, pairs: BlockPairs) -> None:
    if not pairs:
        return
    index = torch.tensor(pairs, dtype=torch.int64)
    for layer in zip(sources, destinations, strict=True):
        for source, destination in zip(*layer, strict=True):
            ops.copy_blocks(source, destination, index)
