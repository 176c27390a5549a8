"""The hash chain that names full blocks: H(parent hash, token ids), from a root that holds the extra keys."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

_DIGEST_SIZE = 32


def root_hash(cache_salt: str | None, extra_keys: Sequence[tuple[str, str]]) -> bytes:
    """Parent of a sequence's first block: through the chain, every block depends on the salt and the (tag, value) keys.

    Tags and msgpack's lengths keep an adapter called "x" apart from a salt "x".
    """
    return blake2b(msgspec.msgpack.encode((cache_salt, tuple(extra_keys))), digest_size=_DIGEST_SIZE).digest()


def extend_hashes(
    hashes: list[bytes],
    token_ids: list[int],
    num_blocks: int,
    block_size: int,
    cache_salt: str | None,
    extra_keys: Sequence[tuple[str, str]],
) -> None:
    """Append to `hashes` until it holds the first `num_blocks` blocks of `token_ids`.

    Cryptographic, because a collision would show one user another user's text.
    """
    num_known = len(hashes)
    if num_known >= num_blocks:
        return
    parent = hashes[-1] if hashes else root_hash(cache_salt, extra_keys)
    content = array("q", token_ids[num_known * block_size : num_blocks * block_size]).tobytes()
    num_bytes = len(content) // (num_blocks - num_known)
    for start in range(0, len(content), num_bytes):
        parent = blake2b(parent + content[start : start + num_bytes], digest_size=_DIGEST_SIZE).digest()
        hashes.append(parent)
