"""Images in messages: found in their order, fetched and decoded on threads of their own, and joined to the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from quire.config.vision import VisionConfig
from quire.errors import InvalidRequestError, NotSupportedError
from quire.server.content_parts import Media, parse_part
from quire.server.models import Prompt, ServedModel

_NUM_THREADS = 4
"""Bounds what decoding takes of memory, and keeps slow hosts from holding up the threads that other work needs."""


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="images")


def find_images(messages: Sequence[dict[str, Any]]) -> list[Media]:
    """Every image of checked messages, in order."""
    images: list[Media] = []
    for index, message in enumerate(messages):
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            parsed = parse_part(part, f"messages[{index}].content[{place}]")
            if isinstance(parsed, Media):
                images.append(parsed)
    return images


def vision_of(model: ServedModel, images: Sequence[Media]) -> VisionConfig | None:
    """How the model reads images. Raises NotSupportedError where it reads none and there are some."""
    vision = model.config.model.hf.vision
    if images and vision is None:
        where = images[0].where
        raise NotSupportedError(f"{where}: image parts are not supported by this model, only text", parameter=where)
    return vision


def image_text(model: ServedModel) -> str | None:
    """What stands for an image in the text of a prompt; None for a model without vision."""
    vision = model.config.model.hf.vision
    return None if vision is None else model.tokenizer.id_to_token(vision.image_token_id)


def num_prompt_tokens(model: ServedModel, prompt: list[int], num_images: int) -> int:
    """Tokens that a prompt has for the model, each image's included."""
    vision = model.config.model.hf.vision
    return len(prompt) + (0 if vision is None else num_images * (vision.num_image_tokens - 1))


async def with_images(model: ServedModel, prompt: list[int], images: Sequence[Media]) -> Prompt:
    """A prompt that holds the image token for each image, together with what the images show.

    Raises InvalidRequestError for too many of them before any is read, and for one that cannot be read or may not be.
    """
    vision = vision_of(model, images)
    if not images or vision is None:
        return prompt
    from quire.images.reader import ImageReader  # Pillow, which text alone does not need

    reader = ImageReader(vision, model.config.media)
    reader.check_count(len(images), model.max_model_len)
    found = sum(1 for token_id in prompt if token_id == vision.image_token_id)
    if found != len(images):
        raise InvalidRequestError(
            f"messages with {len(images)} images must give a prompt with as many image tokens, got {found}: a text may not "
            f"hold {image_text(model)!r}, and the chat template must show every image",
            parameter="messages",
        )
    loop = asyncio.get_running_loop()
    reads = [loop.run_in_executor(_threads(), reader.read_url, image.url or "", image.where) for image in images]
    results = await asyncio.gather(*reads, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return {"prompt_token_ids": prompt, "multi_modal_data": {"image": results}}
