"""Small random checkpoints in Hugging Face format, one function per shape, and transformers' own greedy output for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire import ops
from quire.ops.weights import PackedWeight

VOCAB_SIZE = 199
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa-tied-llama3rope": (
        "Llama",
        dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, tie_word_embeddings=True)
        | {"rope_parameters": _LLAMA3},
    ),
    "llama-mha-biases-untied": (
        "Llama",
        dict(num_attention_heads=3, num_key_value_heads=3, attention_bias=True, mlp_bias=True)
        | {"tie_word_embeddings": False},
    ),
    "mistral-window": (
        "Mistral",
        dict(num_attention_heads=4, num_key_value_heads=1, head_dim=24, sliding_window=24),
    ),
    "mistral-full-wide-heads": (
        "Mistral",
        dict(num_attention_heads=2, num_key_value_heads=2, head_dim=96, sliding_window=None)
        | {"tie_word_embeddings": True},
    ),
    "qwen2-gqa-tied-yarn": (
        "Qwen2",
        dict(num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True)
        | {"rope_parameters": _YARN},
    ),
    "qwen2-windowed-upper-layers": (
        "Qwen2",
        dict(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=False)
        | dict(use_sliding_window=True, sliding_window=40, max_window_layers=1),
    ),
    "qwen3-gqa-tied": (
        "Qwen3",
        dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, tie_word_embeddings=True),
    ),
    "qwen3-biases-windowed": (
        "Qwen3",
        dict(num_attention_heads=5, num_key_value_heads=5, head_dim=16, tie_word_embeddings=False)
        | dict(attention_bias=True, use_sliding_window=True, sliding_window=17, max_window_layers=2),
    ),
}


@dataclass
class Greedy:
    """transformers' answer to one prompt."""

    token_ids: list[int]
    logprobs: torch.Tensor
    """float32 [new tokens, vocab]."""


def make_model(shape: str, **changes: Any) -> Any:
    """A transformers model with random weights (norms and biases too), the same every time."""
    import transformers

    family, values = SHAPES[shape]
    config = getattr(transformers, f"{family}Config")(**{**_COMMON, **values, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(sum(shape.encode()))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def save(model: Any, path: Path, **options: Any) -> Path:
    """Write the model in Hugging Face format."""
    model.save_pretrained(path, **options)
    return path


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter of a Quire model by name; packed ones as the float32 matrix that they stand for."""
    found = {name: parameter.data for name, parameter in model.named_parameters()}
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, PackedWeight):
            found[f"{name}.weight"] = ops.unpack_weight(weight)
    return found


@torch.inference_mode()
def greedy(model: Any, prompts: list[list[int]], num_tokens: int) -> list[Greedy]:
    """transformers' greedy continuation of every prompt, as one left-padded batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logprobs = torch.stack(out.logits, 1).float().log_softmax(-1)
    return [Greedy(row[longest:].tolist(), logprobs[i]) for i, row in enumerate(out.sequences)]


def draw_prompts(count: int, longest: int, vocab_size: int = VOCAB_SIZE, seed: int = 5) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens; the first ones sit around block borders."""
    generator = torch.Generator().manual_seed(seed)
    borders = [1, 2, 15, 16, 17, 31, 32, 33, longest]
    drawn = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    lengths = (borders + drawn)[:count]
    return [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def same_or_near_tie(
    output: list[int], logprob_of: Callable[[int], float], expected: Greedy, tolerance: float = 1e-4
) -> None:
    """Assert equal tokens and logprobs up to the first near tie, where the two engines may part."""
    for step, (mine, theirs) in enumerate(zip(output, expected.token_ids, strict=True)):
        row = expected.logprobs[step]
        if mine != theirs:
            gap = float(row[theirs] - row[mine])
            assert gap < tolerance, f"step {step}: {mine} instead of {theirs}, {gap} less likely"
            return
        assert abs(logprob_of(step) - float(row[mine])) < tolerance, f"logprob at step {step}"
