"""Experts of a quantized checkpoint: in its own numbers where all experts have one format, else as floats; their logits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quire import LLM, SamplingParams
from quire.config.hf import load_hf_config
from quire.config.types import LoadConfig, ModelConfig
from quire.loader import load_model
from quire.ops import cpu
from tests.equivalence.workload import assert_same
from tests.loader.test_experts import experts_of
from tests.models.checkpoints import make_model
from tests.models.shapes import VOCAB_SIZE
from tests.models.test_every_schedule import ALONE, BASE, CHUNKED, run
from tests.quant.encoders import awq, gptq
from tests.quant.test_integer_checkpoints import AWQ, gptq_settings
from tests.quant.test_quantized_models import logprobs
from tests.quant.writing import write

SIZES = {"hidden_size": 128, "intermediate_size": 96}
CASES = {
    "gptq": (gptq_settings(4, True, False), gptq(4, 32), "int4"),
    "awq": (AWQ, awq(32), "int4"),
    "gptq-act-order": (gptq_settings(4, True, True), gptq(4, 32, True, "own"), "float32"),
}
_PARTS = {"w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0)}


def encode_experts(model, folder, encode) -> None:
    """Encode the experts of a Mixtral checkpoint too. transformers has them in one parameter, which gets what they stand for."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        layer, expert, word = name.split(".")[2], int(name.split(".")[5]), name.split(".")[6]
        plain = nn.Linear(*reversed(tensors[name].shape), bias=False)
        plain.weight.data = tensors.pop(name)
        encoded, weight = encode(name.removesuffix(".weight"), plain)
        tensors |= {f"{name.removesuffix('.weight')}.{role}": t.contiguous() for role, t in encoded.items()}
        parameter, half = _PARTS[word]
        rows = getattr(model.model.layers[int(layer)].mlp.experts, parameter).data[expert]
        rows.narrow(0, half * len(weight), len(weight)).copy_(weight)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(a checkpoint's folder, transformers' model with its weights, the format that its experts are kept in)."""
    torch.set_num_threads(1)
    settings, encode, format = CASES[request.param]
    model = make_model("mixtral-gqa", **SIZES)
    write(model, tmp_path, settings, encode)
    encode_experts(model, tmp_path, encode)
    return tmp_path, model, format


def test_experts_keep_their_numbers(case):
    folder, model, format = case
    config = ModelConfig(str(folder), str(folder), str(folder), load_hf_config(folder), "float32", 64, ("m",))
    loaded = load_model(config, LoadConfig(), torch.device("cpu"))
    for layer in loaded.model.layers:
        experts = layer.block_sparse_moe.experts
        assert experts.gate_up_proj.weight.format.name == experts.down_proj.weight.format.name == format
        assert layer.block_sparse_moe.gate.weight.format.name == "float32"
    found, own = experts_of(loaded), model.model.layers[-1].mlp.experts
    torch.testing.assert_close(torch.cat([found["gates"], found["ups"]], 1), own.gate_up_proj.data, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["downs"], own.down_proj.data, rtol=1e-5, atol=1e-6)


def test_logits_are_those_of_the_dequantized_weights(case):
    folder, model, _ = case
    prompt = torch.randint(2, VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    with LLM(str(folder), dtype="float32", **BASE) as llm:
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
    found = torch.tensor([entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)])
    # Where rounded activations send a token to another expert, its logits are others.
    assert (found - logprobs(model, prompt)).abs().median() < 0.3
    original = logprobs(make_model("mixtral-gqa", **SIZES), prompt)
    assert (original - logprobs(model, prompt)).abs().median() > 0.3


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
def test_every_schedule_gives_the_same_logits(case, caplog):
    path, _, _ = case
    expected, hashes = run(path, together=False, dtype="float32", **ALONE)
    outputs, found = run(path, together=True, dtype="float32", **CHUNKED)
    assert_same(expected, outputs)
    assert found == hashes
    assert "runs op by op" not in caplog.text
