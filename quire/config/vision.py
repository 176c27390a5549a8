"""What a model that reads images says of them: its vision tower, and how an image becomes the tower's input.

Read from config.json (`vision_config` and the fields around it) and preprocessor_config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.config.fields import Fields
from quire.errors import UnsupportedModelError, describe

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3
"""Pillow's number of the filter, which is what checkpoints give."""
_LLAVA_TOWER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""CLIP ViT-L/14 at 336 pixels: what a LLaVA checkpoint without `vision_config` means."""
_CLIP_TOWER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
"""What fields that a `vision_config` leaves out mean."""


@dataclass(frozen=True)
class ImageProcessing:
    """From a picture of any size to the tower's square, and from bytes to the numbers that the tower reads."""

    shortest_edge: int | None = None
    """Resize so that the shorter side has so many pixels, then crop the middle; None: resize to the square at once."""
    resample: int = _BICUBIC
    """Pillow's number of a filter."""
    pads_to_square: bool = False
    """First of all, add bars of the mean colour."""
    rescale_factor: float = 1 / 255
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD
    """A number x of a channel becomes (x * rescale_factor - mean) / std."""


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower (2103.00020) and the two layers behind it that give vectors of the language model (2310.03744)."""

    image_token_id: int
    """Stands in a prompt where an image goes; repeated `num_image_tokens` times in what the model computes."""
    image_size: int
    """Height and width of the tower's input, pixels."""
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    feature_layers: tuple[int, ...]
    """Which hidden states are read, side by side, each from 0 (what enters the first layer) to `num_hidden_layers`."""
    drops_class_token: bool
    projector_act: str
    projector_bias: bool
    processing: ImageProcessing

    @property
    def num_patches(self) -> int:
        """Squares that an image is cut into."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one image takes in a prompt."""
        return self.num_patches + (0 if self.drops_class_token else 1)


def read_vision(fields: Fields, preprocessor: Fields, activations: dict[str, str]) -> VisionConfig:
    """The vision side of a LLaVA configuration. `activations`: the names that checkpoints give them, and ours.

    Raises ModelLoadError or UnsupportedModelError naming file and field.
    """
    tower = _tower_fields(fields)
    num_layers = tower.positive("num_hidden_layers")
    image_size, patch_size = tower.positive("image_size"), tower.positive("patch_size")
    if image_size % patch_size:
        raise tower.wrong("image_size", f"a multiple of patch_size ({patch_size})", image_size)
    hidden_size, num_heads = tower.positive("hidden_size"), tower.positive("num_attention_heads")
    if hidden_size % num_heads:
        raise tower.wrong("hidden_size", f"a multiple of num_attention_heads ({num_heads})", hidden_size)
    strategy = fields.get("vision_feature_select_strategy") or "default"
    if strategy not in ("default", "full"):
        raise fields.wrong("vision_feature_select_strategy", "default or full", strategy)
    return VisionConfig(
        image_token_id=_image_token(fields),
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        intermediate_size=tower.positive("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        hidden_act=_activation(tower, "hidden_act", "quick_gelu", activations),
        layer_norm_eps=tower.number("layer_norm_eps", default=1e-5),
        feature_layers=_feature_layers(fields, num_layers),
        drops_class_token=strategy == "default",
        projector_act=_activation(fields, "projector_hidden_act", "gelu", activations),
        projector_bias=fields.flag("multimodal_projector_bias", True),
        processing=_processing(preprocessor, image_size),
    )


def _tower_fields(fields: Fields) -> Fields:
    given = fields.get("vision_config")
    if given is None:
        return Fields(_LLAVA_TOWER, f"{fields.path}: vision_config")
    if not isinstance(given, dict):
        raise fields.wrong("vision_config", "an object", given)
    kind = given.get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise UnsupportedModelError(
            f"{fields.path}: a vision_config of model_type {describe(kind)} is not supported; supported is clip_vision_model"
        )
    return Fields({**_CLIP_TOWER, **given}, f"{fields.path}: vision_config")


def _image_token(fields: Fields) -> int:
    token_id = fields.get("image_token_index", "image_token_id")
    token_id = 32000 if token_id is None else token_id
    if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
        raise fields.wrong("image_token_index", "a token id", token_id)
    return token_id


def _activation(fields: Fields, name: str, default: str, activations: dict[str, str]) -> str:
    given = fields.get(name) or default
    if given not in activations:
        raise UnsupportedModelError(
            f"{fields.path}: {name} {describe(given)} is not supported; supported are {', '.join(activations)}"
        )
    return activations[given]


def _feature_layers(fields: Fields, num_layers: int) -> tuple[int, ...]:
    given = fields.get("vision_feature_layer")
    given = -2 if given is None else given
    layers = given if isinstance(given, list) else [given]
    rule = f"an integer in [{-num_layers - 1}, {num_layers}] or a list of them"
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool) or not -num_layers - 1 <= layer <= num_layers:
            raise fields.wrong("vision_feature_layer", rule, given)
    if not layers:
        raise fields.wrong("vision_feature_layer", rule, given)
    return tuple(layer % (num_layers + 1) for layer in layers)


def _processing(fields: Fields, image_size: int) -> ImageProcessing:
    """CLIP's steps in their order: pad, resize, crop, rescale, normalise. They must end in the tower's square."""
    if not fields.flag("do_resize", True):
        raise fields.wrong("do_resize", "true", False)
    square = {"height": image_size, "width": image_size}
    size = _size(fields, "size", image_size)
    crop = _size(fields, "crop_size", image_size) if fields.flag("do_center_crop", True) else size
    shortest = size.get("shortest_edge")
    if crop != square or (size != square if shortest is None else shortest < image_size):
        raise fields.wrong("size", f"such that images end with {image_size} x {image_size} pixels", fields.get("size"))
    return ImageProcessing(
        shortest_edge=shortest,
        resample=fields.positive("resample", default=_BICUBIC),
        pads_to_square=fields.flag("do_pad", False),
        rescale_factor=fields.number("rescale_factor", default=1 / 255) if fields.flag("do_rescale", True) else 1.0,
        mean=_channels(fields, "image_mean", _CLIP_MEAN) if fields.flag("do_normalize", True) else (0.0, 0.0, 0.0),
        std=_channels(fields, "image_std", _CLIP_STD) if fields.flag("do_normalize", True) else (1.0, 1.0, 1.0),
    )


def _size(fields: Fields, name: str, image_size: int) -> dict[str, int]:
    """`size` and `crop_size`: one number, or an object with shortest_edge, or with height and width."""
    given = fields.get(name)
    if given is None:
        given = {"shortest_edge": image_size} if name == "size" else image_size
    if isinstance(given, int):
        given = {"shortest_edge": given} if name == "size" else {"height": given, "width": given}
    names = [{"shortest_edge"}, {"height", "width"}]
    if not isinstance(given, dict) or set(given) not in names or not all(_is_positive(v) for v in given.values()):
        raise fields.wrong(name, "a number, or an object with shortest_edge or with height and width", given)
    return given


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _channels(fields: Fields, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    given = fields.get(name)
    if given is None:
        return default
    if not isinstance(given, list) or len(given) != 3 or not all(isinstance(x, int | float) for x in given):
        raise fields.wrong(name, "a list of 3 numbers", given)
    if name == "image_std" and not all(given):
        raise fields.wrong(name, "a list of 3 numbers other than 0", given)
    return tuple(float(x) for x in given)
