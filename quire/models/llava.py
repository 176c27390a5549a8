"""LLaVA 1.5 (2310.03744): a CLIP tower reads an image, two layers turn its patches into vectors of a language model."""

from __future__ import annotations

import re

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.config.vision import VisionConfig
from quire.errors import UnsupportedModelError
from quire.layers import ColumnLinear, RowLinear, VocabEmbedding, keep_exact
from quire.models.clip import CLIPVisionModel
from quire.models.llama import LlamaForCausalLM
from quire.models.mistral import MistralForCausalLM
from quire.models.qwen2 import Qwen2ForCausalLM

_LANGUAGE_MODELS: dict[str, type[nn.Module]] = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
}
"""By model_type. What enters their first layer is the embedding itself, so that an image's vectors can stand in its place."""
_PARTS = re.compile(r"(?:model\.)?(language_model|vision_tower|multi_modal_projector)\.(.*)")
_TOWER_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


class LlavaProjector(nn.Module):
    """The tower's features as vectors of the language model: linear_2(act(linear_1(x)))."""

    def __init__(self, vision: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        width = vision.hidden_size * len(vision.feature_layers)
        self.linear_1 = ColumnLinear(width, hidden_size, vision.projector_bias, activation=vision.projector_act)
        self.linear_2 = RowLinear(hidden_size, hidden_size, vision.projector_bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(self.linear_1(features))


class LlavaForConditionalGeneration(nn.Module):
    """The language model, whose image tokens get their vectors from `embed_image`. Only the language model is quantized."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        vision, language_model = config.vision, _LANGUAGE_MODELS.get(config.model_type)
        assert vision is not None, "the configuration of a model that reads images has a vision side"
        if language_model is None:
            raise UnsupportedModelError(
                f"{config.fields.path} of model_type {config.model_type!r} is not supported; "
                f"supported are {', '.join(_LANGUAGE_MODELS)}"
            )
        self.vision_tower = CLIPVisionModel(vision)
        self.multi_modal_projector = LlavaProjector(vision, config.hidden_size)
        self.language_model = language_model(config)
        keep_exact(self.vision_tower)
        keep_exact(self.multi_modal_projector)
        for layer in self.language_model.modules():
            if isinstance(layer, VocabEmbedding):
                layer.reads_images = True
        self.num_skipped_rows = 1 if vision.drops_class_token else 0
        self.packed_weights = language_model.packed_weights

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids [T], positions [T] -> hidden [T, hidden_size]."""
        return self.language_model(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.language_model.compute_logits(hidden)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """pixels [3, S, S] of one image, normalised -> [num_image_tokens, hidden_size]."""
        features = self.vision_tower(pixels)[self.num_skipped_rows :]
        return self.multi_modal_projector(features.contiguous())

    def rename(self, name: str) -> str | None:
        """Both layouts of checkpoints as one; None for what lies behind the layer that is read."""
        if name == "lm_head.weight":
            return "language_model.lm_head.weight"
        match = _PARTS.fullmatch(name)
        if match is None:
            return name
        part, rest = match.groups()
        if part == "language_model" and not rest.startswith(("model.", "lm_head.")):
            rest = f"model.{rest}"
        if part == "vision_tower":
            rest = rest.removeprefix("vision_model.")
            layer = _TOWER_LAYER.match(rest)
            is_behind = layer is not None and int(layer[1]) >= len(self.vision_tower.encoder.layers)
            if is_behind or rest.startswith("post_layernorm.") or rest == "embeddings.position_ids":
                return None
        return f"{part}.{rest}"
