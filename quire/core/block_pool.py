"""`BlockPool`: the blocks of one tier (device or host): reference counts, hashes, and the LRU queue of free blocks.

A block is an int. It is free (reference count 0, in the queue) or owned. A free block may still hold hashed content: it can
be found and revived until it is taken for something else.
"""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Blocks [first_block, num_blocks). Every operation is O(1)."""

    def __init__(self, num_blocks: int, first_block: int = 0) -> None:
        self.first_block = first_block
        self.num_usable = max(0, num_blocks - first_block)
        self.ref_counts: list[int] = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._duplicates: dict[bytes, list[int]] = {}
        """Further blocks with the content of `_by_hash[hash]`."""
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(first_block, num_blocks))
        """A linked list with O(1) removal: taken from the front, least recently used hashed block first."""

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks with an owner."""
        return self.num_usable - len(self._free)

    def cached_blocks(self) -> list[int]:
        """Blocks that nobody owns, with content that `find` finds. O(free blocks)."""
        hashes = self._hashes
        return [block for block in self._free if hashes[block] is not None]

    def find(self, block_hash: bytes) -> int | None:
        """A block with this content, free or owned. Changes nothing."""
        return self._by_hash.get(block_hash)

    def take(self) -> tuple[int, bytes | None]:
        """Own the first free block; also gives the hash of the content that it loses. Raises KeyError when none is free."""
        block, _ = self._free.popitem(last=False)
        self.ref_counts[block] = 1
        evicted = self._hashes[block]
        if evicted is not None:
            self._forget(block, evicted)
        return block, evicted

    def touch(self, block: int) -> None:
        """One more owner; a free block leaves the queue with its content."""
        if self.ref_counts[block] == 0:
            del self._free[block]
        self.ref_counts[block] += 1

    def release(self, block: int) -> None:
        """One owner less. The last one puts the block in the queue: hashed last (reused last), unhashed first."""
        count = self.ref_counts[block] - 1
        assert count >= 0
        self.ref_counts[block] = count
        if count == 0:
            self._free[block] = None
            if self._hashes[block] is None:
                self._free.move_to_end(block, last=False)

    def register(self, block: int, block_hash: bytes) -> None:
        """Make an owned block's content findable. Other blocks may have the same hash."""
        assert self._hashes[block] is None and self.ref_counts[block] > 0
        self._hashes[block] = block_hash
        if self._by_hash.setdefault(block_hash, block) != block:
            self._duplicates.setdefault(block_hash, []).append(block)

    def refresh(self, block: int) -> None:
        """Count a free block as just used."""
        if self.ref_counts[block] == 0:
            self._free.move_to_end(block)

    def clear_hashes(self) -> None:
        """Forget all content."""
        self._hashes = [None] * len(self._hashes)
        self._by_hash.clear()
        self._duplicates.clear()

    def check_integrity(self, expected_ref_counts: dict[int, int]) -> None:
        """Raise AssertionError unless reference counts, queue and hash index agree with each other and with the owners."""
        for block, count in enumerate(self.ref_counts):
            assert count == expected_ref_counts.get(block, 0), f"block {block}: {count} references"
            is_free = count == 0 and block >= self.first_block
            assert (block in self._free) == is_free, f"block {block} with {count} references"
        by_hash: dict[bytes, set[int]] = {}
        for block, block_hash in enumerate(self._hashes):
            if block_hash is not None:
                by_hash.setdefault(block_hash, set()).add(block)
        assert by_hash.keys() == self._by_hash.keys()
        for block_hash, blocks in by_hash.items():
            others = self._duplicates.get(block_hash, [])
            assert {self._by_hash[block_hash], *others} == blocks and len(blocks) == len(others) + 1
        assert self._duplicates.keys() <= by_hash.keys()

    def _forget(self, block: int, block_hash: bytes) -> None:
        self._hashes[block] = None
        others = self._duplicates.get(block_hash)
        if others is None:
            del self._by_hash[block_hash]
            return
        if self._by_hash[block_hash] == block:
            self._by_hash[block_hash] = others.pop()
        else:
            others.remove(block)
        if not others:
            del self._duplicates[block_hash]
