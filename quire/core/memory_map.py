"""`MemoryMap`: what every KV block holds at one moment, for people who watch. O(blocks), and only when asked for."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence

import msgspec

from quire.core.block_manager import BlockManager
from quire.core.request import Request

OWNER_BITS = 12
_OWNER_MASK = (1 << OWNER_BITS) - 1
_MAX_COUNT = (1 << (16 - OWNER_BITS)) - 1
_ONE_OWNER = 1 << OWNER_BITS
_CACHED = 1


class MemoryMap(msgspec.Struct, array_like=True):
    """Counts of blocks on the device, and a word for each block."""

    num_blocks: int
    """All that requests can own: without the block that pads."""
    block_size: int
    """Tokens of a block."""
    num_used: int
    """With an owner."""
    num_shared: int
    """With several owners."""
    num_cached: int
    """Without an owner, but with content that a prompt can find."""
    num_unused_slots: int
    """Tokens that used blocks have room for and do not hold."""
    num_host_blocks: int
    num_host_used: int
    words: bytes
    """16 bits for each block, little-endian, the first usable block first. 0: free; 1: cached; else the owners' count (15: or
    more) in the upper 4 bits and the number of the first owner, modulo 4,096, in the lower 12."""


def map_memory(blocks: BlockManager, requests: Sequence[Request], number: Callable[[Request], int]) -> MemoryMap:
    """The map of the device pool; `requests` are all that own blocks, in the order in which a shared block goes to one."""
    pool = blocks.device
    counts, cached = pool.ref_counts, pool.cached_blocks()
    words = array("H", bytes(2 * len(counts)))
    for block in cached:
        words[block] = _CACHED
    for request in reversed(requests):
        word = _ONE_OWNER | (number(request) & _OWNER_MASK)
        for block in request.block_ids:
            words[block] = word
    shared = [block for block, count in enumerate(counts) if count > 1]
    for block in shared:
        words[block] += (min(counts[block], _MAX_COUNT) - 1) << OWNER_BITS
    if sys.byteorder == "big":
        words.byteswap()
    return MemoryMap(
        num_blocks=pool.num_usable,
        block_size=blocks.block_size,
        num_used=pool.num_used,
        num_shared=len(shared),
        num_cached=len(cached),
        num_unused_slots=sum(request.num_slots - request.num_computed_tokens for request in requests),
        num_host_blocks=blocks.host.num_usable,
        num_host_used=blocks.host.num_used,
        words=words[pool.first_block :].tobytes(),
    )
