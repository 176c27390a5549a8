"""`ImagePrompts`: a prompt's images counted, read, and put in place of its image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire.batch import ImageInput
from quire.config.types import MediaConfig
from quire.config.vision import VisionConfig
from quire.errors import InvalidRequestError
from quire.images import ImageReader, place_images


class ImagePrompts:
    """For one model that reads images."""

    def __init__(self, vision: VisionConfig, media: MediaConfig, max_model_len: int) -> None:
        self._vision, self._media, self._max_model_len = vision, media, max_model_len
        self._reader = ImageReader(vision, media)

    def place(self, token_ids: Sequence[int], images: Sequence[Any]) -> tuple[list[int], tuple[ImageInput, ...]]:
        """The prompt as the model computes it, and what its placeholders stand for.

        Counts are checked before an image is touched. Raises InvalidRequestError.
        """
        self.check_count(len(images))
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
        return place_images(token_ids, pictures, self._vision)

    def check_count(self, num_images: int) -> None:
        """Raises InvalidRequestError for more images than a prompt may have, or than the context can hold."""
        limit = self._media.max_images
        if limit is not None and num_images > limit:
            raise InvalidRequestError(
                f"a prompt may have at most {limit} images (limit_mm_per_prompt), got {num_images}", parameter="image"
            )
        per_image = self._vision.num_image_tokens
        if num_images * per_image >= self._max_model_len:
            raise InvalidRequestError(
                f"{num_images} images of {per_image} tokens each do not fit the context of {self._max_model_len} tokens",
                parameter="image",
            )
