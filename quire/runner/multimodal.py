"""Images of live requests: their embeddings, made once, and the rows of a step that take them in place of their tokens'."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from quire.batch import ImageInput, NewRequest, ScheduledBatch, ScheduledRequest
from quire.config.types import ModelConfig
from quire.ops.capture import RowRun

CACHE_BYTES = 256 * 2**20
"""Memory for embeddings of images that no request of the moment waits for."""


@dataclass(slots=True)
class _Image:
    """One image of a live request."""

    image: ImageInput
    embedding: Tensor | None = None
    """Kept from the step that computes the first of its tokens to the one that computes the last."""


@dataclass(slots=True)
class _EmbeddingCache:
    """The embeddings used last, by the images' content."""

    max_bytes: int
    num_bytes: int = 0
    entries: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict)

    def get(self, content_hash: bytes) -> Tensor | None:
        found = self.entries.get(content_hash)
        if found is not None:
            self.entries.move_to_end(content_hash)
        return found

    def put(self, content_hash: bytes, embedding: Tensor) -> None:
        self.entries[content_hash] = embedding
        self.num_bytes += embedding.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self.entries.popitem(last=False)
            self.num_bytes -= oldest.nbytes


class ImageRows:
    """Knows where images lie in the prompts of live requests; empty for models without vision."""

    def __init__(self, model: nn.Module, config: ModelConfig, device: torch.device) -> None:
        self._model, self._vision, self._device = model, config.hf.vision, device
        self._dtype = torch.float32 if device.type == "cpu" else getattr(torch, config.dtype)
        self._live: dict[str, list[_Image]] = {}
        """Of each request, the images that are not wholly computed."""
        self._cache = _EmbeddingCache(CACHE_BYTES)
        self.num_encoded = 0
        """Times that the tower has run."""

    def add(self, request: NewRequest) -> str | None:
        """Take in a request's images; what is wrong with them, or None."""
        if not request.images:
            return None
        for image in request.images:
            error = self._check(image, len(request.token_ids))
            if error is not None:
                return error
        waiting = [_Image(image) for image in request.images if image.end > request.num_computed_tokens]
        if waiting:
            self._live[request.request_id] = waiting
        return None

    def remove(self, request_id: str) -> None:
        """Forget a request, known or not."""
        self._live.pop(request_id, None)

    def replaced_rows(self, batch: ScheduledBatch) -> list[RowRun]:
        """The rows of a step that belong to images, with their vectors; encodes images that are met for the first time."""
        if not self._live:
            return []
        runs: list[RowRun] = []
        start = 0
        for request in batch.requests:
            if request.request_id in self._live:
                runs += self._runs_of(request, start)
            start += request.num_tokens
        return runs

    def _runs_of(self, request: ScheduledRequest, start: int) -> list[RowRun]:
        """Row `start` of the step is the first token that this request computes."""
        waiting = self._live[request.request_id]
        first, end = request.num_computed_tokens, request.num_computed_tokens + request.num_tokens
        runs = []
        for live in waiting:
            image = live.image
            low, high = max(first, image.first_token), min(end, image.end)
            if low < high:
                if live.embedding is None:
                    live.embedding = self._embed(image)
                vectors = live.embedding[low - image.first_token : high - image.first_token]
                runs.append(RowRun(start + low - first, vectors))
        left = [live for live in waiting if live.image.end > end]
        if left:
            self._live[request.request_id] = left
        else:
            del self._live[request.request_id]
        return runs

    def _embed(self, image: ImageInput) -> Tensor:
        found = self._cache.get(image.content_hash)
        if found is None:
            found = self._encode(image)
            self._cache.put(image.content_hash, found)
        return found

    @torch.inference_mode()
    def _encode(self, image: ImageInput) -> Tensor:
        """[num_tokens, hidden_size]. One image at a time: its bits depend on no other."""
        assert self._vision is not None
        processing = self._vision.processing
        pixels = torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).view(image.size, image.size, 3)
        mean, std = (torch.tensor(x, dtype=torch.float32) for x in (processing.mean, processing.std))
        normalised = (pixels.float() * processing.rescale_factor - mean) / std
        embed = cast(Callable[[Tensor], Tensor], self._model.embed_image)
        self.num_encoded += 1
        return embed(normalised.permute(2, 0, 1).contiguous().to(self._device, self._dtype)).contiguous()

    def _check(self, image: ImageInput, num_tokens: int) -> str | None:
        vision = self._vision
        if vision is None:
            return "this model reads no images"
        size = vision.image_size
        if image.size != size or len(image.pixels) != 3 * size * size:
            return f"an image must have {size} x {size} pixels of 3 bytes, got {image.size} and {len(image.pixels)} bytes"
        if image.num_tokens != vision.num_image_tokens or not 0 <= image.first_token <= num_tokens - image.num_tokens:
            return (
                f"an image must have {vision.num_image_tokens} placeholders within the prompt, "
                f"got {image.num_tokens} from {image.first_token} on"
            )
        return None
