"""The hash chain: what a block's name depends on (invariants 1 and 2)."""

from __future__ import annotations

from quire.batch import ImageInput
from quire.core.block_hash import extend_hashes, root_hash


def chain(
    tokens: list[int],
    *,
    salt: str | None = None,
    keys: tuple[tuple[str, str], ...] = (),
    images: tuple[ImageInput, ...] = (),
) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, tokens, len(tokens) // 4, 4, salt, keys, images)
    return hashes


def image(first: int, content: str, num_tokens: int = 6) -> ImageInput:
    return ImageInput(first, num_tokens, content.encode().ljust(32), 1, b"")


def test_invariant_1_hash_depends_on_parent_and_tokens() -> None:
    first, second = chain([1, 2, 3, 4, 1, 2, 3, 4])
    assert first != second
    assert chain([9, 2, 3, 4, 1, 2, 3, 4])[1] != second


def test_invariant_1_only_full_blocks_have_a_hash() -> None:
    assert len(chain([1] * 7)) == 1


def test_chain_grows_without_changing_what_is_there() -> None:
    hashes: list[bytes] = []
    tokens = list(range(40))
    for num_blocks in (1, 3, 3, 10):
        extend_hashes(hashes, tokens, num_blocks, 4, None, ())
        assert len(hashes) == num_blocks
    assert hashes == chain(tokens)


def test_invariant_2_salt_and_keys_separate_all_blocks() -> None:
    tokens = list(range(8))
    variants = [
        chain(tokens),
        chain(tokens, salt="x"),
        chain(tokens, salt=""),
        chain(tokens, keys=(("lora", "x"),)),
        chain(tokens, keys=(("lora", "x"), ("lora_path", "a"))),
        chain(tokens, keys=(("lora", "x"), ("lora_path", "b"))),
        chain(tokens, keys=(("image", "x"),)),
    ]
    assert len({blocks[1] for blocks in variants}) == len(variants)


def test_invariant_2_tags_prevent_collisions() -> None:
    assert root_hash("x", ()) != root_hash(None, (("salt", "x"),)) != root_hash(None, (("x", "salt"),))


def test_hashes_are_stable_between_processes() -> None:
    assert chain([1, 2, 3, 4])[0].hex() == "da38d3f08d29d905bd205aed1ad5ba52b3e0559d8d3700e770ead782495290bc"


def test_any_integer_is_a_token() -> None:
    assert chain([-1, 2**40, 0, 1]) != chain([-1, 2**40, 0, 2])


def test_images_name_the_blocks_that_they_reach_and_those_behind() -> None:
    tokens = [1] * 5 + [9] * 6 + [2] * 5  # the image lies in blocks 1 and 2
    plain, a, b = chain(tokens), chain(tokens, images=(image(5, "a"),)), chain(tokens, images=(image(5, "b"),))
    assert plain[0] == a[0] == b[0]
    for index in (1, 2, 3):
        assert len({plain[index], a[index], b[index]}) == 3


def test_where_an_image_begins_counts() -> None:
    tokens = [9] * 16
    starts = [chain(tokens, images=(image(first, "a"), image(first + 6, "b"))) for first in (0, 1, 4)]
    assert len({hashes[0] for hashes in starts}) == 3
    swapped = chain(tokens, images=(image(0, "b"), image(6, "a")))
    assert swapped[0] != starts[0][0]


def test_a_chain_with_images_grows_as_it_is_made_at_once() -> None:
    tokens, images = [9] * 40, (image(3, "a", 20), image(30, "b"))
    hashes: list[bytes] = []
    for num_blocks in (1, 2, 6, 10):
        extend_hashes(hashes, tokens, num_blocks, 4, None, (), images)
    assert hashes == chain(tokens, images=images)
