"""Block tables over two tiers: prefix lookup, sharing, copy-on-write, swapping (invariants 3 to 9)."""

from __future__ import annotations

import pytest

from quire.config.types import CacheConfig, KVCacheSpec
from quire.core.block_manager import NULL_BLOCK, BlockManager
from quire.core.request import Request
from tests.core.harness import make_request


def make_manager(num_blocks: int = 17, num_host_blocks: int = 0, *, caching: bool = True) -> BlockManager:
    return BlockManager(
        CacheConfig(enable_prefix_caching=caching), KVCacheSpec(num_blocks, num_host_blocks, 4, 1)
    )


def run(manager: BlockManager, request: Request, num_tokens: int | None = None) -> Request:
    """Admit and compute a request as a step would."""
    num_tokens = request.num_tokens if num_tokens is None else num_tokens
    manager.admit(request, manager.find_prefix(request))
    manager.grow(request, num_tokens)
    request.num_computed_tokens = num_tokens
    manager.register_full_blocks(request)
    return request


def cached(manager: BlockManager, tokens: list[int]) -> list[int]:
    """Blocks that the cache has for a prompt."""
    return manager.find_prefix(make_request("probe", tokens)).block_ids


@pytest.mark.parametrize(
    ("num_tokens", "num_cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (11, 8), (12, 8), (40, 8)]
)
def test_invariant_3_longest_prefix_without_the_last_token(num_tokens: int, num_cached: int) -> None:
    manager = make_manager()
    run(manager, make_request("a", [*range(8), 99]))
    prefix = manager.find_prefix(make_request("b", list(range(num_tokens))))
    assert prefix.num_tokens == num_cached == len(prefix.block_ids) * 4


def test_invariant_3_lookup_stops_at_the_first_miss() -> None:
    manager = make_manager(5)
    manager.free(run(manager, make_request("a", list(range(13)))))
    first_two = cached(manager, list(range(9)))
    manager.admit(other := make_request("x", [7] * 4), manager.find_prefix(other))
    manager.grow(other, 8)  # takes the unhashed block, then evicts the tail of the chain
    assert cached(manager, list(range(13))) == first_two


def test_invariant_4_lookup_changes_nothing() -> None:
    manager = make_manager(6)
    manager.free(run(manager, make_request("a", list(range(9)))))
    order, counts = list(manager.device._free), list(manager.device.ref_counts)
    assert len(cached(manager, list(range(9)))) == 2
    assert (list(manager.device._free), manager.device.ref_counts) == (order, counts)


def test_invariant_4_hits_are_not_evicted_by_their_own_allocation() -> None:
    manager = make_manager(4)
    manager.free(run(manager, make_request("a", list(range(8)))))
    request = make_request("b", [*range(8), *range(50, 54)])
    prefix = manager.find_prefix(request)
    assert manager.num_required(prefix, 12) == 3  # two hits leave the free list, one block is new
    run(manager, request)
    assert request.block_ids[:2] == prefix.block_ids and len(set(request.block_ids)) == 3


def test_invariant_5_tail_is_evicted_before_head() -> None:
    manager = make_manager(5)
    manager.free(run(manager, make_request("a", list(range(16)))))
    for num_left in (3, 2, 1, 0):
        run(manager, make_request(f"x{num_left}", [90 + num_left]))
        assert len(cached(manager, [*range(16), 0])) == num_left


def test_invariant_6_equal_blocks_of_running_requests_stay_duplicated() -> None:
    manager = make_manager()
    tokens = list(range(9))
    a, b = make_request("a", tokens), make_request("b", tokens)
    for request in (a, b):  # both admitted before either has computed anything
        manager.admit(request, manager.find_prefix(request))
        manager.grow(request, 9)
    for request in (a, b):
        request.num_computed_tokens = 9
        manager.register_full_blocks(request)
    assert set(a.block_ids).isdisjoint(b.block_ids)
    manager.free(a)
    assert len(cached(manager, tokens)) == 2
    manager.check_integrity([b])


def test_invariant_7_null_block_is_never_owned_nor_counted() -> None:
    manager = make_manager(5)
    assert manager.device.num_usable == 4 and manager.num_slots == 16
    request = run(manager, make_request("a", 16))
    assert NULL_BLOCK not in request.block_ids


def test_invariant_7_reset_needs_an_idle_pool() -> None:
    manager = make_manager(num_host_blocks=8)
    request = run(manager, make_request("a", list(range(9))))
    assert not manager.reset_prefix_cache()
    assert manager.swap_out(request)
    assert not manager.reset_prefix_cache()
    assert len(cached(manager, list(range(9)))) == 2
    manager.free(request)
    manager.take_copies()
    assert manager.reset_prefix_cache()
    assert cached(manager, list(range(9))) == []


def test_invariant_8_only_computed_tokens_are_cached() -> None:
    manager = make_manager()
    request = run(manager, make_request("a", list(range(12))), num_tokens=7)
    assert len(cached(manager, list(range(12)))) == 1
    manager.grow(request, 12)
    request.num_computed_tokens = 12
    manager.register_full_blocks(request)
    assert len(cached(manager, [*range(12), 0])) == 3


def test_invariant_9_a_request_may_write_the_cache_without_reading_it() -> None:
    manager = make_manager()
    for request in (make_request("a", list(range(9)), prompt_logprobs=1), make_request("b", list(range(9)))):
        prefix = manager.find_prefix(request)
        assert bool(prefix.block_ids) == (request.request_id == "b")
        manager.free(run(manager, request))


def test_caching_off_finds_and_keeps_nothing() -> None:
    manager = make_manager(caching=False)
    manager.free(run(manager, make_request("a", list(range(9)))))
    assert cached(manager, list(range(9))) == []
    assert manager.device.find(b"") is None


def test_extra_keys_and_salt_separate_prefixes() -> None:
    manager = make_manager()
    run(manager, make_request("a", list(range(9)), cache_salt="x"))
    run(manager, make_request("b", list(range(9)), extra_keys=(("lora", "x"),)))
    assert cached(manager, list(range(9))) == []


@pytest.mark.parametrize("prompt_len", [1, 3, 4, 5, 8])
def test_fork_shares_the_prompt_and_copies_the_block_it_writes(prompt_len: int) -> None:
    manager = make_manager()
    parent = run(manager, make_request("a", prompt_len))
    manager.grow(parent, prompt_len + 1)
    child = make_request("b", parent.prompt_token_ids)
    prefix = manager.find_fork(parent)
    assert manager.num_required(prefix, prompt_len) == 1
    manager.admit(child, prefix)
    last = (prompt_len - 1) // 4
    assert child.num_computed_tokens == prompt_len - 1
    assert child.block_ids[:last] == parent.block_ids[:last]
    assert child.block_ids[last] != parent.block_ids[last] and len(child.block_ids) == last + 1
    assert manager.take_copies() == ([], [], [(parent.block_ids[last], child.block_ids[last])])
    manager.check_integrity([parent, child])
    manager.free(parent)
    manager.check_integrity([child])


def test_swap_out_and_in_keeps_every_computed_token() -> None:
    manager = make_manager(num_host_blocks=4)
    request = run(manager, make_request("a", list(range(10))))
    device_blocks = list(request.block_ids)
    assert manager.swap_out(request)
    swap_out, swap_in, _ = manager.take_copies()
    assert [device for device, _ in swap_out] == device_blocks and not swap_in
    assert request.block_ids == [] and len(request.host_block_ids) == 3
    manager.check_integrity([request])
    manager.clear_prefix_cache()  # nothing left on the device: all blocks must come from the host
    host_blocks = list(request.host_block_ids)
    manager.admit(request, manager.find_prefix(request))
    assert request.num_computed_tokens == 10 and request.host_block_ids == []
    assert manager.take_copies()[1] == list(zip(host_blocks, request.block_ids, strict=True))
    assert manager.host.num_used == 0
    manager.check_integrity([request])


def test_swap_in_copies_only_what_the_device_lost() -> None:
    manager = make_manager(num_host_blocks=4)
    request = run(manager, make_request("a", list(range(10))))
    device_blocks = list(request.block_ids)
    manager.swap_out(request)
    manager.take_copies()
    manager.admit(request, manager.find_prefix(request))
    assert request.block_ids[:2] == device_blocks[:2]
    assert len(manager.take_copies()[1]) == 1


def test_swap_out_that_does_not_fit_changes_nothing() -> None:
    manager = make_manager(num_host_blocks=2)
    request = run(manager, make_request("a", list(range(10))))
    assert not manager.swap_out(request)
    assert len(request.block_ids) == 3 and manager.host.num_used == 0
    assert manager.take_copies() == ([], [], [])


def test_evicted_blocks_stay_findable_on_the_host() -> None:
    manager = make_manager(num_blocks=4, num_host_blocks=3)
    manager.free(run(manager, make_request("a", list(range(12)))))
    other = run(manager, make_request("x", 12))
    swap_out, _, _ = manager.take_copies()
    assert len(swap_out) == 3
    manager.free(other)
    again = make_request("b", [*range(12), 0])
    prefix = manager.find_prefix(again)
    assert prefix.block_ids == [NULL_BLOCK] * 3 and prefix.num_tokens == 12
    again.token_ids.pop()
    again.num_tokens = 12
    run(manager, again)
    assert again.num_computed_tokens == 12 and len(manager.take_copies()[1]) == 2


def test_host_blocks_read_in_a_step_are_not_overwritten_in_it() -> None:
    manager = make_manager(num_blocks=4, num_host_blocks=3)
    manager.free(run(manager, make_request("a", list(range(12)))))
    manager.free(run(manager, make_request("x", 12)))  # evicts a's blocks to the host
    manager.take_copies()
    run(manager, make_request("b", list(range(12))))  # reads two host blocks while evicting x's
    swap_out, swap_in, _ = manager.take_copies()
    assert len(swap_in) == 2
    assert {host for host, _ in swap_in}.isdisjoint(host for _, host in swap_out)


def test_check_integrity_notices_a_leak_and_a_shared_tail() -> None:
    manager = make_manager()
    request = run(manager, make_request("a", 6))
    with pytest.raises(AssertionError):
        manager.check_integrity([])
    manager.check_integrity([request])
    other = make_request("b", 6)
    manager.device.touch(request.block_ids[1])
    other.block_ids, other.num_slots = [request.block_ids[1]], 4
    with pytest.raises(AssertionError, match="shared"):
        manager.check_integrity([request, other])
