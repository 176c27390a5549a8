"""`quire quantize --layout gptq`: AutoGPTQ's own layer, and Quire, read what is written as the numbers that were rounded to."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from quire.cli.main import main
from quire.quantize.grid import Grid, Rounded
from quire.quantize.layouts import LAYOUTS
from quire.quantize.rounding import round_to_nearest
from tests.loader.gguf.test_folio import answers
from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model, save, weights_of
from tests.quant.packages import gptq_linear
from tests.quantize.test_gguf import byte_bpe, save_tokenizer

GPTQ = LAYOUTS["gptq"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("QUIRE_NUM_THREADS", "1")


def test_grids_are_those_that_the_layout_holds():
    assert GPTQ.grid(4, 64, False, torch.bfloat16) == Grid(4, 64, False, torch.float16, lowest_zero=1)
    assert GPTQ.fits(64, 96) and not GPTQ.fits(172, 64) and not GPTQ.fits(64, 172)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(4, 32, True), (4, 64, False), (4, 0, True), (8, 0, True)])
def test_the_package_reads_the_same_numbers(bits, group_size, symmetric):
    """One row has one sign: its zero point would be the lowest that there is."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(bits)) * 0.1
    weight[5], weight[6] = weight[5].abs(), -weight[6].abs()
    values, steps = round_to_nearest(weight, GPTQ.grid(bits, group_size, symmetric, torch.float32))
    rounded = Rounded(values.to(torch.int8), steps)
    tensors = {name.removeprefix("layer."): tensor for name, tensor in GPTQ.tensors("layer", rounded).items()}
    layer = gptq_linear()(bits, group_size or -1, 128, 64, bias=False, kernel_switch_threshold=False)
    state = layer.state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        name: (state[name].shape, state[name].dtype) for name in tensors
    }
    layer.load_state_dict(tensors)
    found = layer(torch.eye(128, dtype=torch.float16)).T.float()
    torch.testing.assert_close(found, rounded.dequantize(), rtol=2e-3, atol=1e-5)


def quantize(model, folder, *options: str) -> int:
    return main(["quantize", str(model), "-o", str(folder), "--layout", "gptq", *options])


@pytest.mark.parametrize("options", [("--group-size", "32"), ("--group-size", "32", "--no-symmetric"), ("--bits", "8")])
def test_quire_reads_what_it_wrote(tmp_path, options):
    assert quantize("folio", tmp_path, "--method", "rtn", *options) == 0
    settings = json.loads((tmp_path / "quantize_config.json").read_text())
    assert settings == json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (settings["quant_method"], settings["sym"], settings["desc_act"]) == ("gptq", "--no-symmetric" not in options, False)
    assert settings["checkpoint_format"] == "gptq" and "modules_in_block_to_quantize" not in settings
    tensors, mine = load_file(tmp_path / "model.safetensors"), weights_of(load(tmp_path))
    name = "model.layers.2.mlp.down_proj"
    layer = gptq_linear()(settings["bits"], settings["group_size"], 704, 256, bias=False, kernel_switch_threshold=False)
    layer.load_state_dict({word: tensors[f"{name}.{word}"] for word in ("qweight", "qzeros", "scales", "g_idx")})
    wanted = layer(torch.eye(704, dtype=torch.float16)).T.float()
    torch.testing.assert_close(mine[f"{name}.weight"], wanted, rtol=2e-3, atol=1e-5)
    if options == ("--bits", "8"):
        assert [answer[2] for answer in answers(str(tmp_path))] == [answer[2] for answer in answers("folio")]


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq"])
def test_gpt2_with_its_transposed_weights(tmp_path, method, capsys):
    sizes = dict(n_embd=128, n_head=2, n_inner=192, vocab_size=320)
    folder = save(make_model("gpt2-wide-heads", **sizes), tmp_path / "model")
    save_tokenizer(byte_bpe(), folder)
    text = tmp_path / "text.txt"
    text.write_text("the hen then 123 " * 40)
    options = ("--method", method, "--calibration", str(text), "--num-samples", "2", "--max-tokens", "64", "--group-size", "32")
    assert quantize(folder, tmp_path / "out", *options) == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["transformer.h.0.attn.c_attn.qweight"].shape == (128 // 8, 3 * 128)
    mine, wanted = weights_of(load(tmp_path / "out")), weights_of(load(folder))
    for name in ("transformer.h.1.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.weight"):
        error = (mine[name] - wanted[name]).norm() / wanted[name].norm()
        assert method == "awq" or error < {"rtn": 0.15, "gptq": 0.4}[method]  # awq's weights are others
    ratio = float(capsys.readouterr().out.split("after (")[1].split(")")[0])
    assert ratio == pytest.approx(1, abs=0.5)


def test_layers_that_do_not_fit_stay_floats_and_are_named(tmp_path):
    sizes = dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=32, intermediate_size=172)
    folder = save(make_model("llama-mha-biases-untied", vocab_size=320, **sizes), tmp_path / "model")
    save_tokenizer(byte_bpe(), folder)
    assert quantize(folder, tmp_path / "out", "--method", "rtn", "--group-size", "32") == 0
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert sorted(settings["modules_in_block_to_quantize"]) == [[f"self_attn.{x}_proj"] for x in "koqv"]
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.mlp.down_proj.weight" in names and "model.layers.0.self_attn.q_proj.qweight" in names
    assert load(tmp_path / "out").model.layers[0].self_attn.qkv_proj.weight.format.name == "int4"


def test_eight_bits_have_no_zero_points(tmp_path, capsys):
    assert quantize("folio", tmp_path / "out", "--method", "rtn", "--bits", "8", "--no-symmetric") == 2
    assert "bits 8 has no zero points" in capsys.readouterr().err
