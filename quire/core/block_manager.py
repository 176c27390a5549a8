"""`BlockManager`: block tables of requests over two tiers. Prefix lookup, sharing, copy-on-write, swapping; no queues.

All changes of a step are bookkeeping at once and data movement later: `take_copies` gives the copies, which a worker does in
the order swap out, swap in, copy, compute. Device blocks freed and reused within a step are therefore safe; host blocks that a
step reads or fills stay pinned until its copies are taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from quire.config.types import CacheConfig, KVCacheSpec
from quire.core.block_hash import extend_hashes
from quire.core.block_pool import BlockPool
from quire.core.request import Request

NULL_BLOCK = 0
"""Device block that nobody owns: padding in tensors, placeholder in tables."""


@dataclass(slots=True)
class Prefix:
    """Where the first tokens of a request that enters come from. Finding it changes nothing."""

    block_ids: list[int] = field(default_factory=list)
    """Device blocks to share, in order; NULL_BLOCK where the content comes from the host."""
    from_host: list[tuple[int, int]] = field(default_factory=list)
    """(index in block_ids, host block)."""
    num_tokens: int = 0
    """Tokens whose KV the prefix holds."""
    is_fork: bool = False
    """The blocks are a live request's rather than the cache's, and the last one must be copied before it is written."""
    hashes: list[bytes] = field(default_factory=list)
    """Of a fork's full blocks."""


@dataclass(slots=True)
class PrefixCacheStats:
    """Tokens asked for and tokens found, once per request; runs after a preemption are counted apart."""

    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_resumed_queried_tokens: int = 0
    num_resumed_hit_tokens: int = 0


class BlockManager:
    """Gives device blocks to requests and takes them back; keeps what it took as a prefix cache, on the host too."""

    def __init__(self, cache: CacheConfig, kv: KVCacheSpec) -> None:
        self.block_size = kv.block_size
        self.is_caching = cache.enable_prefix_caching
        self.device = BlockPool(kv.num_blocks, first_block=NULL_BLOCK + 1)
        self.host = BlockPool(kv.num_host_blocks)
        self.num_slots = self.device.num_usable * kv.block_size
        """Tokens that the device pool holds."""
        self.stats = PrefixCacheStats()
        self.num_swapped = 0
        """Requests whose KV lies on the host."""
        self._swap_out: list[tuple[int, int]] = []
        self._swap_in: list[tuple[int, int]] = []
        self._copies: list[tuple[int, int]] = []
        self._pinned: list[int] = []
        """Host blocks of this step's copies; each holds one reference."""

    # -- questions -------------------------------------------------------------------------------------------

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def num_missing(self, request: Request, num_tokens: int) -> int:
        """Free blocks that `grow` takes until the request's table holds `num_tokens`."""
        return max(0, self.num_blocks_for(num_tokens) - len(request.block_ids))

    def num_required(self, prefix: Prefix, num_tokens: int) -> int:
        """Free blocks that a request which enters with `prefix` takes until its table holds `num_tokens`."""
        ref_counts = self.device.ref_counts
        num_live = sum(1 for block in prefix.block_ids if block != NULL_BLOCK and ref_counts[block] > 0)
        return self.num_blocks_for(num_tokens) - num_live + prefix.is_fork

    def find_prefix(self, request: Request) -> Prefix:
        """The longest run of leading blocks in the cache, but never the last token; or all blocks of a swapped request."""
        if request.host_block_ids:
            return self._find_swapped(request)
        prefix = Prefix()
        if self.is_caching and request.params.reads_prefix_cache:
            num_blocks = (request.num_tokens - 1) // self.block_size
            self._extend_hashes(request, num_blocks)
            self._find_cached(prefix, request.block_hashes[:num_blocks])
        return prefix

    def find_fork(self, parent: Request) -> Prefix:
        """All prompt blocks of a live request with a computed prompt; the last prompt token will be computed again."""
        num_tokens = parent.num_prompt_tokens - 1
        shared = parent.block_ids[: self.num_blocks_for(num_tokens + 1)]
        hashes = parent.block_hashes[: num_tokens // self.block_size]
        return Prefix(shared, num_tokens=num_tokens, is_fork=True, hashes=hashes)

    # -- blocks of a request ---------------------------------------------------------------------------------

    def admit(self, request: Request, prefix: Prefix) -> None:
        """Make the prefix the start of the request's table. The caller checked `num_required`."""
        for block in prefix.block_ids:
            if block != NULL_BLOCK:
                self.device.touch(block)
        for _, host_block in prefix.from_host:
            self.host.touch(host_block)
            self._pinned.append(host_block)
        if prefix.is_fork:
            request.block_hashes = prefix.hashes
        request.block_ids = prefix.block_ids
        request.num_slots = len(prefix.block_ids) * self.block_size
        request.num_computed_tokens = prefix.num_tokens
        self._set_registered(request, prefix.num_tokens // self.block_size)
        for index, host_block in prefix.from_host:
            block = self._take_block()
            request.block_ids[index] = block
            self._swap_in.append((host_block, block))
            if self.is_caching and index < request.num_registered_blocks:
                self.device.register(block, request.block_hashes[index])
        for host_block in reversed(request.host_block_ids):
            self.host.release(host_block)
        self._forget_swapped(request)
        if prefix.is_fork:
            self._copy_on_write(request, prefix.num_tokens // self.block_size)

    def grow(self, request: Request, num_tokens: int) -> list[int]:
        """Append blocks until the table holds `num_tokens`; the caller checked `num_missing`. Gives the new blocks."""
        new_block_ids = [self._take_block() for _ in range(self.num_missing(request, num_tokens))]
        request.block_ids += new_block_ids
        request.num_slots += len(new_block_ids) * self.block_size
        return new_block_ids

    def register_full_blocks(self, request: Request) -> None:
        """Let the cache know the blocks that were filled with verified tokens [0, num_computed_tokens)."""
        num_full = request.num_computed_tokens // self.block_size
        if self.is_caching:
            self._extend_hashes(request, num_full)
            for index in range(request.num_registered_blocks, num_full):
                self.device.register(request.block_ids[index], request.block_hashes[index])
        self._set_registered(request, num_full)

    def free(self, request: Request) -> None:
        """Take back every block, tail first, on both tiers. Its content stays findable until the blocks are reused."""
        for block in reversed(request.block_ids):
            self.device.release(block)
        for host_block in reversed(request.host_block_ids):
            self.host.release(host_block)
        request.block_ids = []
        request.num_slots = 0
        self._forget_swapped(request)
        self._set_registered(request, 0)

    def swap_out(self, request: Request) -> bool:
        """Move the computed tokens to the host and free the device blocks; False, changing nothing, when they do not fit."""
        table = request.block_ids[: self.num_blocks_for(request.num_computed_tokens)]
        hashes = request.block_hashes[: request.num_registered_blocks] if self.is_caching else []
        present = [self.host.find(block_hash) for block_hash in hashes]
        num_present_free = sum(
            1 for block in present if block is not None and self.host.ref_counts[block] == 0
        )
        num_present = sum(1 for block in present if block is not None)
        if self.host.num_free - num_present_free < len(table) - num_present:
            return False
        for block in present:
            if block is not None:
                self.host.touch(block)
        host_block_ids = []
        for index, block in enumerate(table):
            host_block = present[index] if index < len(present) else None
            if host_block is None:
                host_block, _ = self.host.take()
                self._swap_out.append((block, host_block))
                if index < len(hashes):
                    self.host.register(host_block, hashes[index])
            host_block_ids.append(host_block)
        self.free(request)
        request.host_block_ids = host_block_ids
        self.num_swapped += bool(host_block_ids)
        return True

    def _forget_swapped(self, request: Request) -> None:
        self.num_swapped -= bool(request.host_block_ids)
        request.host_block_ids = []

    # -- the whole -------------------------------------------------------------------------------------------

    def take_copies(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
        """This step's (swap_out, swap_in, block_copies); ends the step."""
        copies = self._swap_out, self._swap_in, self._copies
        if self._pinned or self._swap_out or self._swap_in or self._copies:
            for host_block in reversed(self._pinned):
                self.host.release(host_block)
            self._swap_out, self._swap_in, self._copies = [], [], []
            self._pinned = []
        return copies

    def reset_prefix_cache(self) -> bool:
        """Forget all cached content; False, changing nothing, while a request owns a block."""
        if self.device.num_used or self.host.num_used:
            return False
        self.clear_prefix_cache()
        return True

    def clear_prefix_cache(self) -> None:
        """Forget all cached content. For when the content of the pools is lost."""
        self.device.clear_hashes()
        self.host.clear_hashes()

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise AssertionError unless each reference to a block has an owner among `requests` (all live ones)."""
        device_counts: dict[int, int] = {}
        host_counts: dict[int, int] = {}
        num_swapped = 0
        for request in requests:
            num_swapped += bool(request.host_block_ids)
            for block in request.block_ids:
                device_counts[block] = device_counts.get(block, 0) + 1
            for block in request.host_block_ids:
                host_counts[block] = host_counts.get(block, 0) + 1
            assert len(request.block_ids) == len(set(request.block_ids)), f"{request} owns a block twice"
            assert request.num_slots == len(request.block_ids) * self.block_size
            for block in request.block_ids[request.num_computed_tokens // self.block_size :]:
                assert self.device.ref_counts[block] == 1, f"{request} would write to shared block {block}"
        assert NULL_BLOCK not in device_counts
        assert not self._pinned
        self.device.check_integrity(device_counts)
        self.host.check_integrity(host_counts)
        assert num_swapped == self.num_swapped

    def count_prefix(self, request: Request, prefix: Prefix, *, is_first: bool) -> None:
        """Count one admission's lookup in the cache; forks, swapped requests and those that do not read it made none."""
        if (
            prefix.is_fork
            or request.host_block_ids
            or not (self.is_caching and request.params.reads_prefix_cache)
        ):
            return
        if is_first:
            self.stats.num_queried_tokens += request.num_tokens
            self.stats.num_hit_tokens += prefix.num_tokens
        else:
            self.stats.num_resumed_queried_tokens += request.num_tokens
            self.stats.num_resumed_hit_tokens += prefix.num_tokens

    # -- inside ----------------------------------------------------------------------------------------------

    def _set_registered(self, request: Request, num_blocks: int) -> None:
        request.num_registered_blocks = num_blocks
        request.next_register_at = (num_blocks + 1) * self.block_size

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        extend_hashes(
            request.block_hashes,
            request.token_ids,
            num_blocks,
            self.block_size,
            request.cache_salt,
            request.extra_keys,
            request.images,
        )

    def _find_cached(self, prefix: Prefix, hashes: list[bytes]) -> None:
        for index, block_hash in enumerate(hashes):
            block = self.device.find(block_hash)
            if block is None:
                host_block = self.host.find(block_hash)
                if host_block is None:
                    break
                prefix.from_host.append((index, host_block))
            prefix.block_ids.append(NULL_BLOCK if block is None else block)
        prefix.num_tokens = len(prefix.block_ids) * self.block_size

    def _find_swapped(self, request: Request) -> Prefix:
        num_full = request.num_computed_tokens // self.block_size if self.is_caching else 0
        prefix = Prefix(num_tokens=request.num_computed_tokens)
        for index, host_block in enumerate(request.host_block_ids):
            block = self.device.find(request.block_hashes[index]) if index < num_full else None
            if block is None:
                prefix.from_host.append((index, host_block))
            prefix.block_ids.append(NULL_BLOCK if block is None else block)
        return prefix

    def _copy_on_write(self, request: Request, index: int) -> None:
        """Put a private copy in place of a shared block that the request is about to write to.

        The source was written before this step: no copy of a step reads what another one writes.
        """
        source, copy = request.block_ids[index], self._take_block()
        self._copies.append((source, copy))
        self.device.release(source)
        request.block_ids[index] = copy

    def _take_block(self) -> int:
        block, evicted_hash = self.device.take()
        if evicted_hash is not None and self.host.num_usable:
            self._keep_on_host(block, evicted_hash)
        return block

    def _keep_on_host(self, block: int, block_hash: bytes) -> None:
        """Copy a cached block that the device evicts to the host, when this is its last copy and there is room."""
        if self.device.find(block_hash) is not None:
            return
        host_block = self.host.find(block_hash)
        if host_block is not None:
            self.host.refresh(host_block)
        elif self.host.num_free:
            host_block, _ = self.host.take()
            self.host.register(host_block, block_hash)
            self._swap_out.append((block, host_block))
            self._pinned.append(host_block)
