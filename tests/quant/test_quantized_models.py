"""Models with the weights of a quantized checkpoint: transformers' logits with the same weights in floats, up to the rounding of
activations, and the same bits under every schedule.
"""

from __future__ import annotations

import pytest
import torch

from quire import LLM, SamplingParams
from quire.ops import cpu
from tests.equivalence.workload import assert_same
from tests.models.checkpoints import make_model
from tests.models.shapes import VOCAB_SIZE
from tests.models.test_every_schedule import ALONE, BASE, CHUNKED, run
from tests.quant.encoders import awq, compressed_tensors, gptq
from tests.quant.test_integer_checkpoints import AWQ, INT8, PACKED, gptq_settings
from tests.quant.writing import write

SIZES = dict(hidden_size=128, intermediate_size=192, num_hidden_layers=3)
CASES = {
    "gptq-act-order": ("qwen3-gqa-tied", gptq_settings(4, False, True), gptq(4, 32, False, "same")),
    "gptq-apart": ("llama-gqa-tied-llama3rope", gptq_settings(4, True, True), gptq(4, 32, True, "own")),
    "awq": ("qwen2-windowed-upper-layers", AWQ, awq(32)),
    "packed": ("llama-gqa-tied-llama3rope", PACKED, ("pack-quantized", 4, 32, False)),
    "int8": ("qwen3-gqa-tied", INT8, ("int-quantized", 8)),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(a checkpoint's folder, transformers' model with its weights, the same model before it was quantized)."""
    torch.set_num_threads(1)
    shape, settings, encode = CASES[request.param]
    encode = compressed_tensors(*encode) if isinstance(encode, tuple) else encode
    sizes = SIZES | (dict(hidden_size=96) if shape.startswith("qwen2") else {})
    model = make_model(shape, **sizes)
    return write(model, tmp_path, settings, encode), model, make_model(shape, **sizes)


@torch.inference_mode()
def logprobs(model, prompt: list[int]) -> torch.Tensor:
    rows = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    return rows[:-1].gather(1, torch.tensor(prompt[1:])[:, None]).squeeze(1)


def test_logits_are_those_of_the_dequantized_weights(case):
    """Eight bits of an activation change them little; the checkpoint's own rounding, in 4 bits, changes them more."""
    path, model, original = case
    prompt = torch.randint(2, VOCAB_SIZE, (100,), generator=torch.Generator().manual_seed(3)).tolist()
    with LLM(str(path), dtype="float32", **BASE) as llm:
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
    found = torch.tensor([entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)])
    error = (found - logprobs(model, prompt)).abs().mean()
    rounding = (logprobs(original, prompt) - logprobs(model, prompt)).abs().mean()
    assert error < (0.3 if path_bits(path) == 4 else 3) * rounding
    assert error < 0.2


def path_bits(path) -> int:
    return 8 if "int-quantized" in (path / "config.json").read_text() else 4


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
def test_every_schedule_gives_the_same_logits(case, caplog):
    path, _, _ = case
    expected, hashes = run(path, together=False, dtype="float32", **ALONE)
    outputs, found = run(path, together=True, dtype="float32", **CHUNKED)
    assert_same(expected, outputs)
    assert found == hashes
    assert "runs op by op" not in caplog.text
