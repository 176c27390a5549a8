"""Random-weight checkpoints in the shapes that the benchmarks use, written once and reused. Speed only, never quality."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A transformers config class with its arguments."""

    architecture: str
    config: dict


SHAPES = {
    "S": Shape(
        "Qwen2",
        dict(
            hidden_size=896,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            vocab_size=151936,
            tie_word_embeddings=True,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "T": Shape(
        "Llama",
        dict(
            hidden_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=512,
            vocab_size=8192,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
}
"""S: Qwen2.5-0.5B; T: a smoke test."""


def make_checkpoint(name: str, folder: Path | None = None) -> Path:
    """The folder of a float32 checkpoint of shape `name`; written on first use under the temporary folder."""
    target = (folder or Path(tempfile.gettempdir()) / "quire-bench") / f"{name}-float32"
    if (target / "config.json").exists():
        return target
    import torch
    import transformers

    shape = SHAPES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{shape.architecture}Config")(**shape.config)
    model = getattr(transformers, f"{shape.architecture}ForCausalLM")(config)
    model.save_pretrained(target)
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "bos_token_id": 1}))
    return target
