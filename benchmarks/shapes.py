"""Random-weight checkpoints in the shapes that the benchmarks use, written once and reused. Speed only, never quality."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
"""Tokens 0 to 2; the last two begin and end a sequence."""


@dataclass(frozen=True)
class Shape:
    """A transformers config class with its arguments, and what it is the shape of."""

    title: str
    architecture: str
    config: dict[str, Any]


SHAPES = {
    "S": Shape(
        "Qwen2.5-0.5B",
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
            rope_theta=1e6,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "M": Shape(
        "TinyLlama-1.1B",
        "Llama",
        dict(
            hidden_size=2048,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            intermediate_size=5632,
            vocab_size=32000,
            tie_word_embeddings=False,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            rope_theta=1e4,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "T": Shape(
        "smoke test",
        "Llama",
        dict(
            hidden_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=512,
            vocab_size=8192,
            tie_word_embeddings=False,
            max_position_embeddings=2048,
            rope_theta=1e4,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
}


def make_checkpoint(name: str, folder: Path | None = None, dtype: str = "float32") -> Path:
    """The folder of a checkpoint of shape `name` with weights in `dtype` and a tokenizer; written on first use, by
    default under the temporary folder.
    """
    target = (folder or Path(tempfile.gettempdir()) / "quire-bench") / f"{name}-{dtype}"
    if (target / "tokenizer_config.json").exists():
        return target
    _write_model(SHAPES[name], target, dtype)
    _write_tokenizer(SHAPES[name].config["vocab_size"], target)
    return target


def padded_vocabulary(vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE tokenizer: special tokens, bytes, pairs of letters, then pads.

    Each id of the model has a token, and no token is "added": some loaders are quadratic in those.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    merges = list(product(ascii_lowercase, repeat=2))
    tokens = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet()), *(first + second for first, second in merges)]
    tokens += [f"<pad{token_id}>" for token_id in range(len(tokens), vocab_size)]
    return {token: token_id for token_id, token in enumerate(tokens)}, merges


def _write_model(shape: Shape, target: Path, dtype: str) -> None:
    import torch
    import transformers

    config = getattr(transformers, f"{shape.architecture}Config")(**shape.config)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = getattr(transformers, f"{shape.architecture}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(target)
    _name_fields_for_older_loaders(target / "config.json", shape, dtype)
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "bos_token_id": 1}))


def _name_fields_for_older_loaders(path: Path, shape: Shape, dtype: str) -> None:
    """Add the names that transformers 4 gave to what transformers 5 writes under new ones."""
    fields = json.loads(path.read_text())
    fields |= {"rope_theta": shape.config["rope_theta"], "torch_dtype": dtype}
    path.write_text(json.dumps(fields, indent=2) + "\n")


def _write_tokenizer(vocab_size: int, target: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = padded_vocabulary(vocab_size)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    unknown, begin, end = SPECIAL_TOKENS
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=end, pad_token=end
    ).save_pretrained(target)
    settings = target / "tokenizer_config.json"
    fields = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(fields, indent=2) + "\n")
