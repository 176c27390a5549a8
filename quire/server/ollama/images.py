"""Ollama's `images`, base64 without a prefix, as parts of a message; and prompts with images, which are never cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.errors import wrong_value
from quire.server.models import Prompt, ServedModel
from quire.server.ollama.truncation import Window
from quire.server.prompts import count_tokens, make_prompt

Message = dict[str, Any]


def check_images(images: Any, where: str) -> None:
    """Raises InvalidRequestError unless they are a list of texts."""
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise wrong_value(where, "a list of base64 texts", images)


def with_image_parts(message: Message) -> Message:
    """A message with its `images` before its text, as chat templates know them."""
    kept = {key: value for key, value in message.items() if key not in ("images", "content")}
    images, text = message.get("images"), message.get("content") or ""
    if not images:
        return {**kept, "content": text}
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": f"data:image/any;base64,{data}"}} for data in images]
    return {**kept, "content": [*parts, {"type": "text", "text": text}]}


async def fitting_prompt(
    model: ServedModel, messages: Sequence[Message], variables: Mapping[str, Any], window: Window
) -> Prompt:
    """The prompt of a conversation with images. Raises PromptTooLongError where it does not fit, and as `make_prompt` does."""
    num_tokens = await count_tokens(model, messages, variables=variables)
    if not window.fits(num_tokens):
        raise window.refuse(num_tokens, "a prompt with images is not cut")
    return await make_prompt(model, messages, variables=variables)


def prompt_length(model: ServedModel, prompt: Prompt) -> int:
    """Tokens that a prompt of ids has for the model."""
    if not isinstance(prompt, dict):
        return len(prompt)
    vision = model.config.model.hf.vision
    per_image = 1 if vision is None else vision.num_image_tokens
    return len(prompt["prompt_token_ids"]) + len(prompt["multi_modal_data"]["image"]) * (per_image - 1)
