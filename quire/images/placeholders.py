"""One token of a prompt stands for an image; the model computes many. From the one form to the other."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from quire.batch import ImageInput
from quire.config.vision import VisionConfig

if TYPE_CHECKING:
    from quire.images.processor import Picture


def expand(token_ids: Sequence[int], vision: VisionConfig) -> list[int]:
    """Every image token as many times as an image has vectors."""
    expanded: list[int] = []
    for token_id in token_ids:
        expanded += [token_id] * (vision.num_image_tokens if token_id == vision.image_token_id else 1)
    return expanded


def place_images(
    token_ids: Sequence[int], pictures: Sequence[Picture], vision: VisionConfig, cache_salt: str | None = None
) -> tuple[list[int], list[ImageInput]]:
    """The prompt with its image tokens expanded, and what they stand for: the pictures in their order.

    The prompt holds as many image tokens as there are pictures. Under different salts the same picture counts as another one, so
    that nobody can tell by the time it takes whether somebody else has sent it.
    """
    per_image = vision.num_image_tokens
    places = [index for index, token_id in enumerate(token_ids) if token_id == vision.image_token_id]
    images = [
        ImageInput(
            place + number * (per_image - 1), per_image, _salted(picture, cache_salt), picture.size, picture.pixels
        )
        for number, (place, picture) in enumerate(zip(places, pictures, strict=True))
    ]
    return expand(token_ids, vision), images


def _salted(picture: Picture, cache_salt: str | None) -> bytes:
    if cache_salt is None:
        return picture.content_hash
    return blake2b(picture.content_hash + cache_salt.encode(), digest_size=32).digest()
