"""Small random checkpoints in Hugging Face format, one function per shape, and transformers' own greedy output for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire import ops
from quire.ops.weights import PackedWeight, WeightParts
from tests.models.shapes import ATTENTION, VOCAB_SIZE, config_values


@dataclass
class Greedy:
    """transformers' answer to one prompt."""

    token_ids: list[int]
    logprobs: torch.Tensor
    """float32 [new tokens, vocab]."""


def make_model(shape: str, **changes: Any) -> Any:
    """A transformers model with random weights (norms and biases too), the same every time."""
    import transformers

    name, values = config_values(shape)
    model_class = getattr(transformers, name)
    config = model_class.config_class(**{**values, **changes})
    config._attn_implementation = ATTENTION.get(shape, "eager")
    torch.manual_seed(sum(shape.encode()))
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5).sub_(1.0 if "Gemma" in type(model).__name__ else 0.0)
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
        if isinstance(weight, PackedWeight | WeightParts):
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
