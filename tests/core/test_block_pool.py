"""One tier of blocks: reference counts, the LRU queue, the hash index (invariants 4 to 7)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quire.core.block_pool import BlockPool

A, B = b"a", b"b"


def take(pool: BlockPool) -> int:
    return pool.take()[0]


def test_invariant_7_blocks_below_the_first_are_never_given_out() -> None:
    pool = BlockPool(4, first_block=1)
    assert pool.num_usable == pool.num_free == 3
    assert sorted(take(pool) for _ in range(3)) == [1, 2, 3]
    with pytest.raises(KeyError):
        pool.take()


def test_invariant_4_find_changes_nothing() -> None:
    pool = BlockPool(3)
    block = take(pool)
    pool.register(block, A)
    pool.release(block)
    before = list(pool._free)
    assert pool.find(A) == block and pool.find(B) is None
    assert list(pool._free) == before and pool.ref_counts[block] == 0


def test_invariant_4_touch_takes_a_free_block_out_of_the_queue_with_its_content() -> None:
    pool = BlockPool(2)
    block = take(pool)
    pool.register(block, A)
    pool.release(block)
    pool.touch(block)
    assert pool.ref_counts[block] == 1 and pool.num_free == 1
    assert take(pool) != block
    assert pool.find(A) == block


def test_invariant_5_unhashed_blocks_are_reused_first_and_hashed_ones_in_lru_order() -> None:
    pool = BlockPool(4)
    blocks = [take(pool) for _ in range(4)]
    for block, block_hash in zip(blocks[:3], (b"0", b"1", b"2"), strict=True):
        pool.register(block, block_hash)
    for block in (blocks[1], blocks[0], blocks[3], blocks[2]):
        pool.release(block)
    assert [take(pool) for _ in range(4)] == [blocks[3], blocks[1], blocks[0], blocks[2]]


def test_invariant_5_only_the_last_release_frees() -> None:
    pool = BlockPool(1)
    block = take(pool)
    pool.touch(block)
    pool.release(block)
    assert pool.num_free == 0
    pool.release(block)
    assert pool.num_free == 1
    with pytest.raises(AssertionError):
        pool.release(block)


def test_invariant_5_taking_a_cached_block_forgets_its_hash() -> None:
    pool = BlockPool(1)
    pool.register(take(pool), A)
    pool.release(0)
    assert pool.take() == (0, A)
    assert pool.find(A) is None


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]])
def test_invariant_6_one_hash_may_name_several_blocks(order: list[int]) -> None:
    pool = BlockPool(3)
    for _ in range(3):
        pool.register(take(pool), A)
    for released, block in enumerate(order, start=1):
        pool.release(block)
        assert take(pool) == block  # evicted: unnamed from now on
        assert (pool.find(A) is None) == (released == 3)
        assert pool.find(A) not in order[:released]
        pool.check_integrity({0: 1, 1: 1, 2: 1})


def test_refresh_counts_as_use() -> None:
    pool = BlockPool(2)
    for block_hash in (A, B):
        pool.register(take(pool), block_hash)
    pool.release(0)
    pool.release(1)
    pool.refresh(0)
    assert pool.take() == (1, B)


def test_clear_hashes_forgets_everything() -> None:
    pool = BlockPool(2)
    for _ in range(2):
        pool.register(take(pool), A)
    pool.clear_hashes()
    assert pool.find(A) is None
    pool.register(0, B)
    pool.check_integrity({0: 1, 1: 1})


@pytest.mark.parametrize(
    "harm",
    [
        lambda pool: pool.ref_counts.__setitem__(0, 2),
        lambda pool: pool._free.pop(1),
        lambda pool: pool._by_hash.pop(A),
        lambda pool: pool._free.__setitem__(0, None),
    ],
)
def test_check_integrity_notices(harm: Callable[[BlockPool], object]) -> None:
    pool = BlockPool(2)
    pool.register(take(pool), A)
    pool.check_integrity({0: 1})
    harm(pool)
    with pytest.raises(AssertionError):
        pool.check_integrity({0: 1})
