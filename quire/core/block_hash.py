"""The hash chain that names full blocks: H(parent hash, token ids, images), from a root that holds the extra keys."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from quire.batch import ImageInput

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
    images: Sequence[ImageInput] = (),
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
    for index, start in enumerate(range(0, len(content), num_bytes), num_known):
        named = parent + content[start : start + num_bytes]
        if images:
            named += _image_keys(images, index * block_size, (index + 1) * block_size)
        parent = blake2b(named, digest_size=_DIGEST_SIZE).digest()
        hashes.append(parent)


def _image_keys(images: Sequence[ImageInput], first: int, end: int) -> bytes:
    """The content of every image with a placeholder among tokens [first, end), and how far from the first it begins."""
    return b"".join(
        image.content_hash + (image.first_token - first).to_bytes(8, signed=True)
        for image in images
        if image.first_token < end and first < image.end
    )
