"""Checkpoints of GPTQ, AWQ and compressed-tensors: the weights are those that the tools' own code reads, bit for bit, and how
they are kept; what does not fit is named.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import parallel
from quire.config.engine_args import EngineArgs
from quire.config.hf import load_hf_config
from quire.config.quantization import settle_quantization
from quire.engine.resolve import resolve_config
from quire.errors import ConfigError, ModelLoadError, NotSupportedError, UnsupportedModelError
from quire.loader import load_model
from quire.loader.load import weight_bytes
from quire.ops.weights import FormatName, WeightFormat, WeightParts
from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model, weights_of
from tests.quant.encoders import awq, compressed_tensors, gptq
from tests.quant.writing import write

SIZES = dict(
    hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=2
)
LAYER = "model.layers.1."
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
INT8 = {"quant_method": "compressed-tensors", "format": "int-quantized"}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm"}


def gptq_settings(bits: int, symmetric: bool = True, desc_act: bool = False) -> dict:
    return {"quant_method": "gptq", "bits": bits, "sym": symmetric, "desc_act": desc_act, "group_size": 32}


def kept_in(group_size: int, has_zeros: bool = False, name: FormatName = "int4") -> WeightFormat:
    return WeightFormat(name, group_size, 64, has_zeros=has_zeros)


CASES = {
    "gptq": (gptq_settings(4), gptq(4, 32), kept_in(32)),
    "gptq-zeros": (gptq_settings(4, False), gptq(4, 64, False), kept_in(64, True)),
    "gptq-whole-rows": (gptq_settings(4, False), gptq(4, -1, False), kept_in(64, True)),
    "gptq-3": (gptq_settings(3, False), gptq(3, 32, False), kept_in(32, True, "uint3")),
    "gptq-2": (gptq_settings(2), gptq(2, 64), kept_in(64, False, "uint2")),
    "gptq-8-whole-rows": (gptq_settings(8), gptq(8, -1), WeightFormat("int8", 0, 64)),
    "gptq-2-zeros": (gptq_settings(2, False), gptq(2, 32, False), kept_in(32, True, "uint2")),
    "gptq-3-whole-rows": (gptq_settings(3), gptq(3, -1), kept_in(64, False, "uint3")),
    "gptq-8": (gptq_settings(8), gptq(8, 64), kept_in(64, False, "uint8")),
    "gptq-8-act-order": (gptq_settings(8, True, True), gptq(8, 32, True, "same"), kept_in(32, False, "uint8")),
    "gptq-8-zeros": (gptq_settings(8, False), gptq(8, 32, False), kept_in(32, True, "uint8")),
    "gptq-groups-of-16": (gptq_settings(4), gptq(4, 16), WeightFormat("float32")),
    "gptq-act-order": (gptq_settings(4, False, True), gptq(4, 32, False, "same"), kept_in(32, True)),
    "gptq-3-act-order": (gptq_settings(3, True, True), gptq(3, 64, True, "same"), kept_in(64, False, "uint3")),
    "awq": (AWQ, awq(32), kept_in(32, True)),
    "awq-whole-rows": (AWQ, awq(-1), kept_in(64, True)),
    "packed": (PACKED, ("pack-quantized", 4, 32), kept_in(32)),
    "packed-zeros": (PACKED, ("pack-quantized", 4, 64, False), kept_in(64, True)),
    "packed-whole-rows": (PACKED, ("pack-quantized", 4), kept_in(64)),
    "packed-3": (PACKED, ("pack-quantized", 3, 32, False), kept_in(32, True, "uint3")),
    "packed-2": (PACKED, ("pack-quantized", 2, 64), kept_in(64, False, "uint2")),
    "packed-5-zeros": (PACKED, ("pack-quantized", 5, 32, False), kept_in(32, True, "uint5")),
    "packed-6": (PACKED, ("pack-quantized", 6, 64), kept_in(64, False, "uint6")),
    "packed-8": (PACKED, ("pack-quantized", 8, 64), kept_in(64, False, "uint8")),
    "packed-8-whole-rows": (PACKED, ("pack-quantized", 8), WeightFormat("int8", 0, 64)),
    "int8": (INT8, ("int-quantized", 8), WeightFormat("int8", 0, 64)),
    "int8-zeros": (INT8, ("int-quantized", 8, None, False), kept_in(64, True, "uint8")),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_tool(case, tmp_path):
    settings, encode, kept = CASES[case]
    encode = compressed_tensors(*encode) if isinstance(encode, tuple) else encode
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, settings, encode)
    loaded = load(tmp_path)
    expected, found = model.state_dict(), weights_of(loaded)
    parts = {
        "self_attn.qkv_proj": [f"self_attn.{x}_proj" for x in "qkv"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }
    for name, names in parts.items():
        whole = torch.cat([expected[f"{LAYER}{part}.weight"] for part in names])
        assert torch.equal(found[f"{LAYER}{name}.weight"], whole), name
    assert loaded.model.layers[1].mlp.down_proj.weight.format == kept
    assert loaded.lm_head.weight.format == WeightFormat("float32")


FUSED = {
    "gpt-neox-parallel": {"intermediate_size": 192},
    "falcon-40b": {"ffn_hidden_size": 192},
    "phi3-window": {"intermediate_size": 192},
    "gptj-wide-heads": {"n_inner": 192},
    "gpt2-wide-heads": {"n_embd": 192, "n_inner": 192},
}


@pytest.mark.parametrize("shape", FUSED)
def test_fused_and_reordered_projections(shape, tmp_path):
    """Rows find their places as those of floats do: by groups of heads, in other orders, out of one tensor for several parts."""
    model = make_model(shape, **FUSED[shape])
    if shape == "gpt2-wide-heads":
        _make_linear(model)
    write(model, tmp_path, gptq_settings(4), gptq(4, 32), keep=("lm_head", "embed_out"))
    floats = model.state_dict()
    found = weights_of(load(tmp_path))
    if shape == "gpt2-wide-heads":
        floats = {name: tensor.T if _is_conv1d(name) else tensor for name, tensor in floats.items()}
    plain = json.loads((tmp_path / "config.json").read_text())
    del plain["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    if model.config.tie_word_embeddings:
        del floats["lm_head.weight"]
    save_file({name: tensor.contiguous() for name, tensor in floats.items()}, tmp_path / "model.safetensors")
    expected = weights_of(load(tmp_path))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def _is_conv1d(name: str) -> bool:
    return name.endswith(".weight") and any(word in name for word in ("c_attn", "c_proj", "c_fc"))


def _make_linear(model) -> None:
    """transformers' Conv1D layers as linear ones, whose weights are [outputs, inputs], as the tools pack them."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer).__name__ == "Conv1D":
                linear = torch.nn.Linear(*layer.weight.shape)
                linear.weight.data, linear.bias.data = layer.weight.T.contiguous(), layer.bias.data
                setattr(parent, name, linear)


def test_projections_that_order_their_inputs_differently_stay_apart(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, gptq_settings(4, desc_act=True), gptq(4, 32, act_order="own"))
    loaded = load(tmp_path)
    expected, found = model.state_dict(), weights_of(loaded)
    parts = loaded.model.layers[1].self_attn.qkv_proj.weight
    assert isinstance(parts, WeightParts) and [part.output_size for part in parts.parts] == [128, 64, 64]
    qkv = torch.cat([expected[f"{LAYER}self_attn.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(found[f"{LAYER}self_attn.qkv_proj.weight"], qkv)
    gate_up = torch.cat([expected[f"{LAYER}mlp.{x}_proj.weight"] for x in ("gate", "up")])
    assert torch.equal(found[f"{LAYER}mlp.gate_up_proj.weight"], gate_up)


def test_a_projection_in_floats_beside_quantized_ones(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, gptq_settings(4), gptq(4, 32), keep=("lm_head", "k_proj", "layers.0.mlp"))
    loaded = load(tmp_path)
    expected, found = model.state_dict(), weights_of(loaded)
    qkv = torch.cat([expected[f"{LAYER}self_attn.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(found[f"{LAYER}self_attn.qkv_proj.weight"], qkv)
    layers = loaded.model.layers
    assert [layer.mlp.down_proj.weight.format.name for layer in layers] == ["float32", "int4"]


def test_zero_points_of_the_second_layout_and_layers_with_bits_of_their_own(tmp_path):
    """gptq_v2 stores zero points as they are; a layer's shapes say how many bits it has."""
    four, two = gptq(4, 32, False), gptq(2, 32, False)
    settings = gptq_settings(4, False)
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, settings, lambda name, layer: (two if "down_proj" in name else four)(name, layer))
    expected = weights_of(load(tmp_path))
    assert torch.equal(expected[f"{LAYER}mlp.down_proj.weight"], model.state_dict()[f"{LAYER}mlp.down_proj.weight"])
    tensors = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(".qzeros"):  # no stored zero point is the largest, so that none carries
            tensors[name] = tensor + (0x55555555 if "down_proj" in name else 0x11111111)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = weights_of(load(tmp_path))
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "bits must be 2, 3, 4 or 8, got 5"),
        ({"bits": "4"}, "bits must be an integer of at least 1, got '4'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported, only gptq and gptq_v2"),
        ({"quant_method": "awq", "bits": 8}, "bits must be 4, got 8"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ in version 'gemv' is not supported, only gemm"),
        ({"quant_method": "exl2"}, "quant_method 'exl2' is not supported, only gptq"),
        (PACKED | {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized' of compressed-tensors is not supported"),
        (PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config .* is not supported"),
        (PACKED | {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config .* is not supported"),
    ],
)
def test_settings_that_cannot_be_read(changes, message, tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, gptq_settings(4) | changes, gptq(4, 32), keep=("proj", "lm_head"))
    with pytest.raises(ModelLoadError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    write(make_model("llama-mha-biases-untied", **SIZES), tmp_path, gptq_settings(4, False, True), gptq(4, 32, False))
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"{LAYER}mlp.down_proj"
    for word, wrong, message in (
        ("scales", None, f"{name}.weight has no scales beside its other tensors"),
        ("qweight", tensors[f"{name}.qweight"][:, :-1], "qweight of shape .* and scales of shape"),
        ("qweight", tensors[f"{name}.qweight"][:-4], "groups of inputs that are not 160 numbers below 6"),
        ("qzeros", tensors[f"{name}.qzeros"][:-1], "zero points of shape .*, but scales of shape"),
        ("g_idx", tensors[f"{name}.g_idx"] + 1, "groups of inputs that are not 192 numbers below 6"),
        ("extra.qweight", tensors[f"{name}.qweight"], r"model.layers.1.mlp.down_proj.extra.weight has no scales"),
    ):
        changed = {key: tensor for key, tensor in tensors.items() if key != f"{name}.{word}"}
        if wrong is not None:
            changed[f"{name}.{word}"] = wrong.clone()
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ModelLoadError, match=message):
            load(tmp_path)
    whole = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"missing: {name}.bias, {name}.weight"):
        load(tmp_path)


def test_needless_biases_of_zeros_are_passed_over(tmp_path):
    """Versions of the tools give every layer a bias; one that is not zero belongs somewhere."""
    write(make_model("qwen3-gqa-tied", **SIZES), tmp_path, gptq_settings(4), gptq(4, 32))
    tensors = load_file(tmp_path / "model.safetensors")
    bias = {f"{LAYER}mlp.down_proj.bias": torch.zeros(128)}
    save_file(tensors | bias, tmp_path / "model.safetensors")
    load(tmp_path)
    save_file(tensors | {f"{LAYER}mlp.down_proj.bias": torch.ones(128)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"unexpected: .*down_proj\.bias"):
        load(tmp_path)


def test_settings_in_a_file_of_their_own(tmp_path):
    """What AutoGPTQ and AutoAWQ wrote before transformers knew of quantization."""
    write(make_model("llama-mha-biases-untied", **SIZES), tmp_path, gptq_settings(4), gptq(4, 32))
    config = json.loads((tmp_path / "config.json").read_text())
    settings = config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    del settings["quant_method"]
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert load_hf_config(tmp_path).quantization.method == "gptq"
    assert load(tmp_path).model.layers[0].mlp.down_proj.weight.format == kept_in(32)


def test_the_option_names_the_checkpoint_s_own_form(tmp_path):
    write(make_model("llama-mha-biases-untied", **SIZES), tmp_path, gptq_settings(4), gptq(4, 32), keep=("proj", "lm_head"))
    checkpoint = load_hf_config(tmp_path).quantization
    at_load = ("int8", "int4")
    for given in (None, "gptq", "gptq_marlin"):
        assert settle_quantization(given, checkpoint, at_load) is None
    for given in ("int8", "awq"):
        with pytest.raises(ConfigError, match=f"quantization must be gptq or none for a checkpoint .* got '{given}'"):
            settle_quantization(given, checkpoint, at_load)
    assert settle_quantization("int4", None, at_load) == "int4"
    with pytest.raises(ConfigError, match="int8, int4 or none for a checkpoint in floats, got 'awq'"):
        settle_quantization("awq", None, at_load)


def test_shares_of_a_quantized_weight_are_refused(tmp_path):
    write(make_model("llama-mha-biases-untied", **SIZES), tmp_path, gptq_settings(4), gptq(4, 32), keep=("proj", "lm_head"))
    with parallel.as_rank(1, 2), pytest.raises(NotSupportedError, match="tensor_parallel_size=2 with a .* by gptq"):
        load(tmp_path)


def test_what_stays_in_float16_is_kept_as_small_as_in_the_file(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES).half()
    write(model, tmp_path, gptq_settings(4), gptq(4, 64))
    config = resolve_config(EngineArgs(model=str(tmp_path), device="cpu", skip_tokenizer_init=True), offline=True)
    assert config.model.dtype == "bfloat16"
    in_file = sum(tensor.nbytes for name, tensor in load_file(tmp_path / "model.safetensors").items() if "g_idx" not in name)
    loaded = load_model(config.model, config.load, torch.device("cpu"))
    small = sum(parameter.nbytes for parameter in loaded.parameters())  # norms and biases, in float32
    assert weight_bytes(loaded) - small / 2 <= 1.1 * in_file


def test_an_unknown_method_is_no_reason_to_load_floats(tmp_path):
    write(make_model("llama-mha-biases-untied", **SIZES), tmp_path, {"bits": 4}, gptq(4, 32), keep=("proj", "lm_head"))
    with pytest.raises(UnsupportedModelError, match="quant_method None is not supported"):
        load_hf_config(tmp_path)
