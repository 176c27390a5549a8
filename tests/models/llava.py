"""Small LLaVA checkpoints with random weights, pictures, and transformers' answers to prompts with images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.models.checkpoints import Greedy

VOCAB_SIZE, IMAGE_TOKEN = 269, 258
"""Bytes, begin and end of a text, the image token; and some that no text has."""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for part in m['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_TOWER = {"num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 7, "initializer_range": 0.15}
_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-class-token-dropped": {
        "vision_config": _TOWER | {"hidden_size": 48, "intermediate_size": 80, "image_size": 35},
        "text_config": ("LlamaConfig", _TEXT | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    },
    "qwen2-tied-two-layers-read": {
        "vision_config": _TOWER
        | {"hidden_size": 72, "intermediate_size": 56, "image_size": 28, "hidden_act": "gelu"},
        "text_config": (
            "Qwen2Config",
            _TEXT | {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
        ),
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": [-3, -1],
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu_pytorch_tanh",
    },
}


def make_llava(shape: str) -> Any:
    """A transformers model with random weights, the same every time."""
    import transformers

    values = dict(SHAPES[shape])
    text_class, text = values.pop("text_config")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**values.pop("vision_config")),
        text_config=getattr(transformers, text_class)(**text),
        image_token_index=IMAGE_TOKEN,
        **values,
    )
    torch.manual_seed(sum(shape.encode()))
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            elif "vision_tower" in name or "projector" in name:  # CLIP begins with weights that let nothing through
                parameter.normal_(0, 0.15)
    return model


def save_llava(model: Any, path: Path, **processing: Any) -> Path:
    """Write the checkpoint with its preprocessor_config.json."""
    model.save_pretrained(path)
    size = model.config.vision_config.image_size
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        **processing,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(values))
    return path


def save_tokenizer(path: Path, chat_template: str = TEMPLATE) -> None:
    """One token per byte, and `<image>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<image>"])
    tokenizer.save(str(path / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "chat_template": chat_template}
    (path / "tokenizer_config.json").write_text(json.dumps(values))


def draw_picture(seed: int, width: int = 60, height: int = 45) -> Image.Image:
    """Coarse coloured noise, so that resizing leaves something of it."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def preprocess(path: Path, pictures: list[Image.Image]) -> torch.Tensor:
    """What transformers' processor (on Pillow) makes of pictures: [n, 3, S, S]."""
    import transformers

    values = json.loads((path / "preprocessor_config.json").read_text())
    kind = getattr(transformers, values.pop("image_processor_type") + "Pil")
    return kind(**values)(images=pictures, return_tensors="pt")["pixel_values"]


def expand(prompt: list[int], num_image_tokens: int) -> list[int]:
    """Each image token as often as the model computes it."""
    return [i for token in prompt for i in [token] * (num_image_tokens if token == IMAGE_TOKEN else 1)]


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], pixels: torch.Tensor | None, num_tokens: int) -> Greedy:
    """transformers' greedy continuation of an expanded prompt, computed anew for each token."""
    ids, rows = list(prompt), []
    for _ in range(num_tokens):
        out = model(input_ids=torch.tensor([ids]), pixel_values=pixels)
        rows.append(out.logits[0, -1].float().log_softmax(-1))
        ids.append(int(rows[-1].argmax()))
    return Greedy(ids[len(prompt) :], torch.stack(rows))
