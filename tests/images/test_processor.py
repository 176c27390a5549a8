"""Preprocessing equals transformers' image processors on Pillow, byte for byte before the numbers are scaled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quire.config.fields import Fields
from quire.config.hf import load_hf_config
from quire.config.vision import VisionConfig, read_vision
from quire.errors import InvalidRequestError, ModelLoadError
from quire.images import processor
from quire.images.placeholders import place_images
from quire.images.processor import Picture, make_picture
from tests.models.llava import draw_picture

SIZE = 28
SQUARE = {"height": SIZE, "width": SIZE}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}, "crop_size": SQUARE}
PROCESSING = {
    "clip": CLIP,
    "larger-then-cropped": CLIP | {"size": {"shortest_edge": 37}},
    "square-at-once": CLIP | {"size": SQUARE, "do_center_crop": False},
    "padded": CLIP | {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
    "bilinear-other-scale": CLIP | {"resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    "not-normalised": CLIP | {"do_normalize": False, "rescale_factor": 0.01},
}
SIZES = ((28, 28), (60, 45), (45, 60), (29, 200), (7, 5), (333, 28))


def vision_with(values: dict[str, object], **config: object) -> VisionConfig:
    tower = {"image_size": SIZE, "patch_size": 7}
    return read_vision(
        Fields({"vision_config": tower, **config}), Fields(values, "preprocessor_config.json"), {"quick_gelu": "q", "gelu": "g"}
    )


def numbers(picture: Picture, vision: VisionConfig) -> np.ndarray:
    """What the worker makes of a picture: [3, S, S]."""
    pixels = np.frombuffer(picture.pixels, dtype=np.uint8).reshape(picture.size, picture.size, 3)
    steps = vision.processing
    mean, std = (np.array(x, dtype=np.float32) for x in (steps.mean, steps.std))
    return ((pixels.astype(np.float32) * np.float32(steps.rescale_factor) - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", PROCESSING)
def test_pictures_equal_those_of_transformers(kind: str) -> None:
    import transformers

    values = dict(PROCESSING[kind])
    vision = vision_with(values)
    reference = getattr(transformers, values.pop("image_processor_type") + "Pil")(**values)
    for seed, size in enumerate(SIZES):
        image = draw_picture(seed, *size)
        expected = np.asarray(reference(images=image, return_tensors="np")["pixel_values"][0])
        found = numbers(make_picture(image, vision, "image"), vision)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5, size


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16", "LA"])
def test_every_mode_becomes_rgb_as_in_transformers(mode: str) -> None:
    import transformers

    image = draw_picture(3).convert("L").convert("I").convert("I;16") if mode == "I;16" else draw_picture(3).convert(mode)
    values = {name: value for name, value in CLIP.items() if name != "image_processor_type"}
    vision = vision_with(CLIP)
    expected = transformers.CLIPImageProcessorPil(**values)(images=image, return_tensors="np")["pixel_values"][0]
    assert np.abs(numbers(make_picture(image, vision, "image"), vision) - np.asarray(expected)).max() < 1e-5


def test_the_hash_is_that_of_what_the_tower_sees() -> None:
    vision = vision_with(CLIP)
    image = draw_picture(1)
    first, again, other = (
        make_picture(each, vision, "image").content_hash for each in (image, image.copy(), draw_picture(2))
    )
    assert first == again != other


def test_the_given_image_is_left_as_it_was() -> None:
    image = draw_picture(1)
    before = image.tobytes()
    make_picture(image, vision_with(PROCESSING["padded"]), "image")
    assert image.tobytes() == before


def test_a_long_thin_image_is_padded_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "MAX_PIXELS", 10_000)
    image = Image.new("RGB", (300, 30), (255, 0, 0))
    picture = make_picture(image, vision_with(PROCESSING["padded"]), "image")
    assert len(picture.pixels) == 3 * SIZE**2


def test_sizes_are_limited() -> None:
    vision = vision_with(CLIP)
    for size in ((2, 401), (401, 2)):
        with pytest.raises(InvalidRequestError, match="image must be an image whose sides differ by a factor of at most 200"):
            make_picture(Image.new("RGB", size), vision, "image")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, "do_resize must be true"),
        ({"crop_size": {"height": 20, "width": 20}}, "size must be such that images end with 28 x 28 pixels"),
        ({"size": {"shortest_edge": 20}}, "size must be such that images end with 28 x 28 pixels"),
        ({"size": {"longest_edge": 20}}, "size must be a number, or an object"),
        ({"image_std": [1, 0, 1]}, "image_std must be a list of 3 numbers other than 0"),
        ({"image_mean": [1, 2]}, "image_mean must be a list of 3 numbers"),
    ],
)
def test_a_wrong_preprocessor_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ModelLoadError) as raised:
        vision_with(CLIP | values)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_feature_layer": 30}, "vision_feature_layer must be an integer in [-13, 12] or a list of them"),
        ({"vision_feature_layer": []}, "vision_feature_layer must be"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy must be default or full"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "model_type 'siglip_vision_model' is not supported"),
        ({"vision_config": {"image_size": 30, "patch_size": 7}}, "image_size must be a multiple of patch_size (7)"),
        ({"projector_hidden_act": "mish"}, "projector_hidden_act 'mish' is not supported"),
        ({"image_token_index": -1}, "image_token_index must be a token id"),
    ],
)
def test_a_wrong_vision_side_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ModelLoadError) as raised:
        vision_with({}, **config)
    assert message in str(raised.value)


def test_a_checkpoint_that_says_little_is_llava_1_5(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    hf = load_hf_config(tmp_path)
    assert (hf.hidden_size, hf.num_hidden_layers, hf.num_key_value_heads, hf.intermediate_size) == (4096, 32, 32, 11008)
    assert (hf.model_type, hf.dtype, hf.eos_token_ids, hf.rms_norm_eps) == ("llama", "float16", (2,), 1e-5)
    assert hf.vision is not None
    assert (hf.vision.num_image_tokens, hf.vision.image_token_id, hf.vision.feature_layers) == (576, 32000, (23,))
    assert hf.vision.processing.shortest_edge == 336


def test_an_image_token_outside_of_the_vocabulary_is_refused(tmp_path: Path) -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"image_token_index must be below vocab_size \(32000\), got 32000"):
        load_hf_config(tmp_path)


def test_placeholders_know_their_places() -> None:
    vision = dataclasses.replace(vision_with(CLIP), image_token_id=9)
    pictures = [Picture(b"a", SIZE, b"1"), Picture(b"b", SIZE, b"2")]
    ids, images = place_images([1, 9, 2, 9], pictures, vision)
    assert ids == [1, *[9] * 16, 2, *[9] * 16]
    assert [(image.first_token, image.end, image.content_hash) for image in images] == [(1, 17, b"1"), (18, 34, b"2")]
