"""Files of images: what is read, and what is refused before it costs memory."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from quire.errors import InvalidRequestError
from quire.images.decode import decode_image
from tests.models.llava import draw_picture


def encoded(format: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or draw_picture(1)).save(file, format, **options)
    return file.getvalue()


def png_that_says(width: int, height: int) -> bytes:
    """A file of a hundred bytes that claims to be so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        decode_image(data, "image")
    assert raised.value.parameter == "image"
    return str(raised.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(format: str) -> None:
    image = decode_image(encoded(format), "image")
    assert (image.mode, image.size) == ("RGB", (60, 45))


def test_a_palette_with_transparency() -> None:
    image = draw_picture(1).convert("P")
    assert decode_image(encoded("PNG", image, transparency=bytes(range(256))), "image").mode == "RGB"


def test_a_photo_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert decode_image(encoded("JPEG", exif=exif), "image").size == (45, 60)


@pytest.mark.parametrize("size", [(8193, 8193), (20000, 20000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    assert "pixels" in refusal(png_that_says(*size))


def test_a_thread_of_pixels_is_refused() -> None:
    assert "sides differ by a factor of at most 200, got 20000 x 1" in refusal(png_that_says(20000, 1))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_file_that_was_cut_off_is_refused(format: str) -> None:
    data = encoded(format)
    for length in (len(data) // 2, 40, 12):
        message = refusal(data[:length])
        assert "is cut off or damaged" in message or "must be an image in one of the formats" in message


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refusal(data) == "image must be an image in one of the formats PNG, JPEG, WEBP, GIF, BMP"


def test_formats_that_pillow_could_read_are_not_tried() -> None:
    for format in ("TIFF", "ICO", "PPM"):
        assert "must be an image in one of the formats" in refusal(encoded(format))
