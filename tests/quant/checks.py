"""What every reader of quantized checkpoints must hold: the weights, the logits, and the same bits under every schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire import LLM, SamplingParams
from quire.ops import cpu
from quire.ops.weights import WeightParts
from tests.equivalence.workload import assert_same
from tests.loader.test_quantized import load
from tests.models.checkpoints import weights_of
from tests.models.test_every_schedule import ALONE, CHUNKED, run

SIZES = dict(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2, head_dim=32)


def loaded_weights(folder: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Quire's weights by name, and the format in which each linear layer of the second block keeps its own."""
    model = load(folder, **options)
    kept = {}
    for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        weight = model.model.layers[1].get_submodule(name).weight
        parts = weight.parts if isinstance(weight, WeightParts) else (weight,)
        kept[name] = " ".join(part.format.name for part in parts)
    return weights_of(model), kept


def same_weights(found: dict[str, Tensor], model: Any, tolerance: float = 0.0) -> None:
    """Every layer of the second block beside the transformers model's, which has the dequantized ones."""
    expected, layer = model.state_dict(), "model.layers.1."
    parts = {
        "self_attn.qkv_proj": [f"self_attn.{x}_proj" for x in "qkv"],
        "self_attn.o_proj": ["self_attn.o_proj"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }
    for name, words in parts.items():
        whole = torch.cat([expected[f"{layer}{word}.weight"] for word in words]).float()
        torch.testing.assert_close(found[f"{layer}{name}.weight"], whole, rtol=tolerance, atol=0)


@torch.inference_mode()
def close_logits(folder: Path, model: Any, limit: float) -> None:
    """Log-probabilities of a prompt's tokens beside transformers'; `limit`: their mean distance, in their standard deviation."""
    prompt = torch.arange(3, 60).tolist()
    with LLM(str(folder), skip_tokenizer_init=True, max_model_len=128, num_gpu_blocks_override=16, num_threads=1) as llm:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
    found = [next(iter(entry.values())).logprob for entry in output.prompt_logprobs[1:]]
    rows = model.float()(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    expected = rows[:-1].gather(1, torch.tensor(prompt[1:]).unsqueeze(1)).squeeze(1)
    assert float((torch.tensor(found) - expected).abs().mean() / expected.std()) < limit


def same_under_every_schedule(folder: Path, caplog: Any, **options: Any) -> None:
    """The logits alone, in a batch, in chunks and from the prefix cache, to the last bit, in one captured program."""
    if cpu.load()[0] is None:
        return
    expected, hashes = run(folder, together=False, **options, **ALONE)
    outputs, found = run(folder, together=True, **options, **CHUNKED)
    assert_same(expected, outputs)
    assert found == hashes
    assert "runs op by op" not in caplog.text
