"""AWQ's factors change no model: of every family, a checkpoint scaled by any factors gives the same logits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.config.types import LoadConfig
from quire.errors import UnsupportedModelError
from quire.loader import load_model
from quire.quantize import awq
from quire.quantize.calibration import Forward
from quire.quantize.integers import IntegerWork
from quire.quantize.options import QuantizeOptions
from tests.models import plain_torch
from tests.models.checkpoints import draw_prompts, make_model, save
from tests.models.drive import make_config

SHAPES = {
    "llama-mha-biases-untied": 4,
    "llama-gqa-tied-llama3rope": 3,
    "mistral-window": 3,
    "qwen2-gqa-tied-yarn": 3,
    "qwen3-gqa-tied": 3,
    "granite-gqa-tied": 3,
    "phi3-window": 3,
    "gemma-multi-query": 3,
    "gemma2-windows-and-caps": 3,
    "gemma3-windows": 3,
    "glm-gqa": 3,
    "glm4-gqa": 3,
    "olmo2-gqa": 1,
    "stablelm-biases": 3,
    "stablelm-parallel-head-norms": 2,
    "starcoder2-plain-untied": 3,
    "phi-plain": 2,
    "gpt-neox-parallel": 3,
    "gpt-neox-sequential-tied": 3,
    "gpt2-wide-heads": 3,
    "gptj-wide-heads": 2,
    "opt-norm-before": 4,
    "opt-norm-after-projections": 2,
    "bloom-wide-heads": 3,
    "bloom-odd-heads-adding-to-norms": 1,
    "falcon-7b": 1,
    "falcon-40b": 2,
    "falcon-11b-one-norm": 1,
    "falcon-rw-alibi": 3,
    "baichuan-7b": 4,
    "qwen-wide-heads": 4,
    "chatglm3-groups": 3,
    "chatglm-no-groups": 4,
}
"""Shapes of tests/models, and how many links a block of each has."""
CHANGES = {"gpt2-wide-heads": {"n_inner": 192}}
"""Sizes that the layout holds."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("QUIRE_NUM_THREADS", "1")


def checkpoint(shape: str, folder):
    plain = plain_torch.MODELS.get(shape)
    return save(make_model(shape, **CHANGES.get(shape, {})), folder) if plain is None else plain().save(folder)


def no_report(what: str, total: int):
    return lambda: None


def work_on(folder, method="awq", **options) -> IntegerWork:
    settled = QuantizeOptions(str(folder), str(folder / "out"), method=method, calibration="-", group_size=0, **options).settled()
    return IntegerWork(settled, make_config(folder).model, load_file(folder / "model.safetensors"), no_report)


def logits(folder, prompts) -> torch.Tensor:
    config = make_config(folder).model
    model = load_model(config, LoadConfig(), torch.device("cpu"))
    forward = Forward(model, config, 64)
    with torch.inference_mode():
        return torch.cat([model.compute_logits(forward(ids)) for ids in prompts])


@pytest.mark.parametrize("shape", SHAPES)
def test_scaling_changes_no_model(tmp_path, shape, monkeypatch):
    generator = torch.Generator().manual_seed(len(shape))
    calls = []

    def any_scales(readers, hessian, magnitudes, grid):
        assert len({weight.shape[1] for weight in readers} | {len(magnitudes), len(hessian)}) == 1
        calls.append(len(readers))
        return torch.rand(len(magnitudes), generator=generator) * 1.5 + 0.5

    monkeypatch.setattr(awq, "find_scales", any_scales)
    folder = checkpoint(shape, tmp_path / "model")
    layout = "gptq" if shape.startswith("gpt2") else "compressed-tensors"
    work = work_on(folder, layout=layout)
    prompts = draw_prompts(2, 24)
    expected = logits(folder, prompts)
    work.scale(prompts)
    assert len(calls) == SHAPES[shape] * work.config.hf.num_hidden_layers
    before, after = load_file(folder / "model.safetensors"), work.scaled_tensors()
    assert sum(not torch.equal(before[name], tensor) for name, tensor in after.items()) >= len(calls)
    save_file(after, folder / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(logits(folder, prompts), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("shape", ["mixtral-gqa", "qwen3-moe-gqa"])
def test_other_families_are_told_what_there_is(tmp_path, shape):
    folder = save(make_model(shape), tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="method awq is for models of the classes .*: use method gptq or rtn"):
        work_on(folder)


def test_transposed_weights_need_a_layout_that_holds_them(tmp_path):
    folder = save(make_model("gpt2-wide-heads"), tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="transposed weights of GPT2LMHeadModel: use layout gptq"):
        work_on(folder, "rtn")
