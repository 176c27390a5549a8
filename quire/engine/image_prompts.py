"""`ImagePrompts`: a prompt's images counted, read, and put in place of its image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.batch import ImageInput
from quire.config.types import MediaConfig
from quire.config.vision import VisionConfig
from quire.errors import InvalidRequestError, wrong_value
from quire.images.placeholders import place_images
from quire.images.reader import ImageReader


class ImagePrompts:
    """For one model that reads images."""

    def __init__(self, vision: VisionConfig, media: MediaConfig, max_model_len: int) -> None:
        self._vision, self._max_model_len = vision, max_model_len
        self._reader = ImageReader(vision, media)

    def place(
        self, token_ids: Sequence[int], data: object, cache_salt: str | None, *, is_cut: bool
    ) -> tuple[list[int], list[ImageInput]]:
        """The prompt as the model computes it, and what its placeholders stand for. `data`: the prompt's `multi_modal_data`.

        Counts are checked before an image is touched. Raises InvalidRequestError, also for a prompt that may have lost tokens.
        """
        images = _images_of(data)
        if images and is_cut:
            raise InvalidRequestError(
                "truncate_prompt_tokens cannot be used with images", parameter="truncate_prompt_tokens"
            )
        self._reader.check_count(len(images), self._max_model_len)
        found = sum(1 for token_id in token_ids if token_id == self._vision.image_token_id)
        if found != len(images):
            raise InvalidRequestError(
                f"the prompt must hold the image token (id {self._vision.image_token_id}) once for each image, "
                f"got it {found} times for {len(images)} images",
                parameter="prompt",
            )
        pictures = [
            self._reader.read(image, f"multi_modal_data.image[{index}]") for index, image in enumerate(images)
        ]
        return place_images(token_ids, pictures, self._vision, cache_salt)


def _images_of(data: object) -> list[Any]:
    if data is None:
        return []
    if not isinstance(data, Mapping) or set(data) - {"image"}:
        raise wrong_value("multi_modal_data", 'None or {"image": one image or a list of them}', data)
    images = data.get("image")
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]
