"""`ImageReader`: from what a user gives for an image (an address, bytes, a Pillow image) to what the vision tower sees."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from PIL import Image

from quire.config.types import MediaConfig
from quire.config.vision import VisionConfig
from quire.errors import InvalidRequestError, wrong_value
from quire.images.decode import decode_image
from quire.images.fetch import MAX_BYTES, fetch
from quire.images.local_files import read_local
from quire.images.processor import Picture, make_picture


class ImageReader:
    """For one model and one operator's rules. Every call may take a while: to fetch, to decode, to resize."""

    def __init__(self, vision: VisionConfig, media: MediaConfig) -> None:
        self._vision, self._media = vision, media

    def check_count(self, num_images: int, max_model_len: int) -> None:
        """Raises InvalidRequestError for more images than a prompt may have, or than the context can hold."""
        limit, per_image = self._media.max_images, self._vision.num_image_tokens
        if limit is not None and num_images > limit:
            raise InvalidRequestError(
                f"a prompt may have at most {limit} images (limit_mm_per_prompt), got {num_images}", parameter="image"
            )
        if num_images * per_image >= max_model_len:
            raise InvalidRequestError(
                f"{num_images} images of {per_image} tokens each do not fit the context of {max_model_len} tokens",
                parameter="image",
            )

    def read_url(self, url: str, parameter: str) -> Picture:
        """A data:, file:// or http(s) URL. Raises InvalidRequestError naming `parameter`: not allowed, or no image."""
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            data = _data_of(url, parameter)
        elif scheme == "file":
            data = read_local(url, self._media.local_path, parameter)
        elif scheme in ("http", "https"):
            data = fetch(url, self._media.domains, parameter)
        else:
            raise wrong_value(parameter, "a data:, file:// or http(s) URL", url[:80])
        return self.read_bytes(data, parameter)

    def read_bytes(self, data: bytes, parameter: str) -> Picture:
        """The content of an image file. Raises InvalidRequestError naming `parameter`."""
        return make_picture(decode_image(data, parameter), self._vision, parameter)

    def read(self, image: Any, parameter: str) -> Picture:
        """An address, a Pillow image, or one that was read already. Raises InvalidRequestError naming `parameter`."""
        if isinstance(image, Picture):
            return image
        if isinstance(image, str):
            return self.read_url(image, parameter)
        if isinstance(image, Image.Image):
            return make_picture(image, self._vision, parameter)
        raise wrong_value(parameter, "an address or a PIL.Image.Image", image)


def _data_of(url: str, parameter: str) -> bytes:
    head, comma, text = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise wrong_value(parameter, "a data:...;base64 URL", url[:80])
    return decode_base64(text, parameter)


def decode_base64(text: str, parameter: str) -> bytes:
    """The bytes that base64 text stands for. Raises InvalidRequestError naming `parameter`."""
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise InvalidRequestError(f"{parameter} holds more than {MAX_BYTES} bytes", parameter=parameter)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{parameter} holds text that is not base64: {error}", parameter=parameter) from None
