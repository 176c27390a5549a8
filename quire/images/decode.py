"""From the bytes of a file to an image, within limits that are checked before anything large is allocated."""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from quire.errors import InvalidRequestError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Nothing else is tried: each format's decoder is one more that bytes of strangers reach."""
MAX_PIXELS = 2**26
MAX_ASPECT = 200
"""Of the longer side to the shorter: the shorter one becomes the tower's size, so the longer one must be bounded."""


def decode_image(data: bytes, parameter: str) -> Image.Image:
    """The first picture of a file, upright, as RGB. Raises InvalidRequestError naming `parameter`."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _wrong(parameter, f"must be an image in one of the formats {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _wrong(parameter, f"must be an image of at most {MAX_PIXELS} pixels") from None
    except _DECODER_ERRORS:
        raise _wrong(parameter, _DAMAGED) from None
    check_size(image, parameter)
    try:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except _DECODER_ERRORS:
        raise _wrong(parameter, _DAMAGED) from None


def check_size(image: Image.Image, parameter: str) -> None:
    """Raises InvalidRequestError for an image that is too large, or too long and thin."""
    width, height = image.size
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise _wrong(parameter, f"must be an image of 1 to {MAX_PIXELS} pixels, got {width} x {height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _wrong(
            parameter, f"must be an image whose sides differ by a factor of at most {MAX_ASPECT}, got {width} x {height}"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels; transparency is dropped, as CLIP's preprocessing does."""
    if image.mode == "P":  # Pillow warns of a palette with transparency unless that is unfolded first
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


_DAMAGED = "holds an image file that is cut off or damaged"
"""Pillow's own words may hold addresses of this process."""
_DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, OverflowError, MemoryError)
"""What Pillow raises for files that are cut off or malformed."""


def _wrong(parameter: str, rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"{parameter} {rule}", parameter=parameter)
