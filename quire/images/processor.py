"""From an image of any size to the square that the vision tower sees: CLIP's preprocessing up to the numbers' scale.

Pad, resize and crop happen here, in bytes; to rescale and normalise is the worker's affair: a quarter of the bytes travels.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from PIL import Image

from quire.config.vision import ImageProcessing, VisionConfig
from quire.images.decode import MAX_PIXELS, check_size, to_rgb


@dataclass(frozen=True, slots=True)
class Picture:
    """What the tower is to see of one image."""

    pixels: bytes
    """Row by row: red, green and blue of each pixel, a byte each."""
    size: int
    """Height and width."""
    content_hash: bytes
    """Of the pixels."""


def make_picture(image: Image.Image, vision: VisionConfig, parameter: str) -> Picture:
    """Raises InvalidRequestError, naming `parameter`, for an image that is too large, or too long and thin."""
    check_size(image, parameter)
    image, processing, size = to_rgb(image), vision.processing, vision.image_size
    if processing.pads_to_square:
        image = _pad_to_square(image, processing)
    filter = Image.Resampling(processing.resample)
    if processing.shortest_edge is None:
        image = image.resize((size, size), filter)
    else:
        image = _crop_middle(image.resize(_scaled(image.size, processing.shortest_edge), filter), size)
    pixels = image.tobytes()
    return Picture(pixels, size, blake2b(pixels, digest_size=32).digest())


def _scaled(size: tuple[int, int], shortest_edge: int) -> tuple[int, int]:
    """(width, height) with the shorter side so long; the longer one is rounded down."""
    width, height = size
    if width <= height:
        return shortest_edge, int(shortest_edge * height / width)
    return int(shortest_edge * width / height), shortest_edge


def _crop_middle(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _pad_to_square(image: Image.Image, processing: ImageProcessing) -> Image.Image:
    """With bars of the mean colour; an image whose square would be too large is made smaller first."""
    side = max(image.size)
    if side * side > MAX_PIXELS:
        scale = MAX_PIXELS**0.5 / side
        width, height = (max(1, int(scale * length)) for length in image.size)
        image = image.resize((width, height), Image.Resampling(processing.resample))
        side = max(image.size)
    colour = tuple(int(255 * mean) for mean in processing.mean)
    square = Image.new("RGB", (side, side), colour)  # type: ignore[arg-type]
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
