"""`ImageRows`: which rows of a step belong to which image, how often the tower runs, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from quire.batch import ImageInput, NewRequest, ScheduledBatch, ScheduledRequest
from quire.config.fields import Fields
from quire.config.types import HFConfig, ModelConfig
from quire.config.vision import read_vision
from quire.runner import multimodal
from quire.runner.multimodal import ImageRows
from quire.sampling_params import SamplingParams

_CONFIG = {"vision_config": {"image_size": 4, "patch_size": 2}, "image_token_index": 9}
VISION = read_vision(Fields(_CONFIG), Fields({}), {"quick_gelu": "a", "gelu": "b"})
CPU = torch.device("cpu")


class Tower:
    """Four vectors of two numbers: which patch, and a pixel of the image."""

    def __init__(self) -> None:
        self.num_calls = 0

    def embed_image(self, pixels: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        raw = (pixels[0, 0, 0] * VISION.processing.std[0] + VISION.processing.mean[0]) * 255
        return torch.stack([torch.tensor([patch, raw.item()]) for patch in range(4)]).round()


def make_rows(vision=VISION) -> tuple[ImageRows, Tower]:
    hf = dataclasses.replace(HFConfig("L", "llama", 99, 2, 2, 1, 1, 1, 2, 64), vision=vision)
    tower = Tower()
    return ImageRows(tower, ModelConfig("m", "m", "m", hf, "float32", 64, ("m",)), CPU), tower


def image(first: int, colour: int) -> ImageInput:
    return ImageInput(first, 4, bytes([colour]) * 32, 4, bytes([colour]) * 48)


def request(name: str, *images: ImageInput, computed: int = 0) -> NewRequest:
    return NewRequest(name, [9] * 20, 20, SamplingParams(), 0, [], computed, list(images))


def batch(*parts: tuple[str, int, int]) -> ScheduledBatch:
    return ScheduledBatch(1, [ScheduledRequest(name, first, count, [], False) for name, first, count in parts])


def shown(rows: ImageRows, *parts: tuple[str, int, int]) -> list[tuple[int, list[list[float]]]]:
    return [(run.first, run.vectors.tolist()) for run in rows.replaced_rows(batch(*parts))]


def test_rows_of_a_step_get_the_vectors_of_their_places() -> None:
    rows, tower = make_rows()
    assert rows.add(request("a", image(2, 50), image(8, 60))) is None
    assert shown(rows, ("x", 0, 5), ("a", 0, 4)) == [(7, [[0, 50], [1, 50]])]
    assert shown(rows, ("a", 4, 6), ("x", 5, 1)) == [(0, [[2, 50], [3, 50]]), (4, [[0, 60], [1, 60]])]
    assert shown(rows, ("a", 10, 1)) == [(0, [[2, 60]])]
    assert shown(rows, ("a", 11, 1)) == [(0, [[3, 60]])]
    assert shown(rows, ("a", 12, 8)) == []
    assert tower.num_calls == 2


def test_what_is_computed_already_is_not_waited_for() -> None:
    rows, tower = make_rows()
    rows.add(request("a", image(2, 50), image(8, 60), computed=6))
    assert shown(rows, ("a", 6, 14)) == [(2, [[i, 60] for i in range(4)])]
    assert tower.num_calls == 1


def test_equal_images_are_encoded_once() -> None:
    rows, tower = make_rows()
    for name in ("a", "b"):
        rows.add(request(name, image(0, 50), image(4, 50)))
    assert len(shown(rows, ("a", 0, 20), ("b", 0, 20))) == 4
    assert tower.num_calls == 1


def test_the_cache_drops_what_was_used_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "CACHE_BYTES", 2 * 4 * 2 * 4)
    rows, tower = make_rows()
    for number, colour in enumerate((50, 60, 50, 70, 50, 60)):
        rows.add(request(str(number), image(0, colour)))
        shown(rows, (str(number), 0, 20))
    assert tower.num_calls == 4  # 60 made room for 70


def test_a_request_that_is_gone_is_forgotten() -> None:
    rows, _ = make_rows()
    rows.add(request("a", image(2, 50)))
    rows.remove("a")
    rows.remove("never-here")
    assert shown(rows, ("a", 0, 20)) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ImageInput(0, 4, b"", 5, bytes(75)), "an image must have 4 x 4 pixels of 3 bytes, got 5 and 75 bytes"),
        (ImageInput(0, 4, b"", 4, bytes(47)), "got 4 and 47 bytes"),
        (ImageInput(0, 3, b"", 4, bytes(48)), "an image must have 4 placeholders within the prompt, got 3 from 0 on"),
        (ImageInput(17, 4, b"", 4, bytes(48)), "got 4 from 17 on"),
        (ImageInput(-1, 4, b"", 4, bytes(48)), "got 4 from -1 on"),
    ],
)
def test_images_that_make_no_sense_fail_their_request(wrong: ImageInput, message: str) -> None:
    rows, _ = make_rows()
    error = rows.add(request("a", wrong))
    assert error is not None and message in error
    assert shown(rows, ("a", 0, 20)) == []


def test_a_model_without_vision_takes_none() -> None:
    rows, _ = make_rows(vision=None)
    assert rows.add(request("a", image(0, 1))) == "this model reads no images"
    assert rows.add(request("b")) is None
