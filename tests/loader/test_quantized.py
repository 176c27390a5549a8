"""Quantization while a checkpoint is read: the same numbers as quantizing it afterwards, in little more memory than they take."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import ops, parallel
from quire.config.hf import load_hf_config
from quire.config.types import LoadConfig, ModelConfig
from quire.loader import load_model
from quire.ops.weights import WeightFormat
from quire.quant.at_load import fitting_format
from tests.models.checkpoints import draw_prompts, make_model, save
from tests.models.drive import Driver, Job, make_config

CPU = torch.device("cpu")
SIZES = dict(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2, head_dim=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save(make_model("llama-mha-biases-untied", **SIZES), tmp_path_factory.mktemp("untied"))


def load(folder, load_format="auto", **options):
    config = ModelConfig(str(folder), str(folder), str(folder), load_hf_config(folder), "float32", 64, ("m",), **options)
    return load_model(config, LoadConfig(load_format=load_format), CPU)


def test_the_rows_of_every_layer_are_quantized(folder):
    model = load(folder, quantization="int4", quantization_group_size=64, embedding_quantization="int8")
    tensors = load_file(folder / "model.safetensors")
    prefix = "model.layers.1."
    layer = model.model.layers[1]
    parts = {
        "self_attn.qkv_proj": [f"self_attn.{x}_proj" for x in "qkv"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }
    for name, names in parts.items():
        weight = layer.get_submodule(name).weight
        assert weight.format == WeightFormat("int4", 64, 64)
        whole = torch.cat([tensors[f"{prefix}{part}.weight"] for part in names])
        expected = ops.unpack_weight(ops.pack_weight(whole, weight.format, weight.gate_up))
        assert torch.equal(ops.unpack_weight(weight), expected)
    for weight, name in ((model.model.embed_tokens.weight, "model.embed_tokens"), (model.lm_head.weight, "lm_head")):
        assert weight.format == WeightFormat("int8", 0, 64)
        expected = ops.unpack_weight(ops.pack_weight(tensors[f"{name}.weight"], weight.format))
        assert torch.equal(ops.unpack_weight(weight), expected)
    bias = torch.cat([tensors[f"{prefix}self_attn.{x}_proj.bias"] for x in "qkv"])
    assert torch.equal(layer.self_attn.qkv_proj.bias, bias)


@pytest.mark.parametrize("choice", [None, "int8", "int4"])
def test_embeddings_and_head_have_a_choice_of_their_own(folder, choice):
    model = load(folder, quantization="int8", embedding_quantization=choice)
    assert model.lm_head.weight.format.name == (choice or "float32")
    assert model.model.layers[0].mlp.down_proj.weight.format.name == "int8"


def test_half_precision_checkpoints_and_small_parameters(folder, tmp_path):
    """Rounding starts from the checkpoint's own numbers; norms and biases are float32 on a CPU."""
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model = load(tmp_path, quantization="int8")
    wanted = ops.pack_weight(tensors["model.layers.0.mlp.down_proj.weight"], WeightFormat("int8", 0, 64))
    assert torch.equal(ops.unpack_weight(model.model.layers[0].mlp.down_proj.weight), ops.unpack_weight(wanted))
    assert model.model.norm.weight.dtype == model.model.layers[0].mlp.down_proj.bias.dtype == torch.float32
    plain = load(tmp_path)
    assert plain.model.layers[0].mlp.down_proj.weight.format.name == "float32"


def test_groups_that_do_not_fit_become_smaller_ones_or_int8():
    wanted = WeightFormat("int4", 128, 64)
    assert fitting_format(wanted, 896) == wanted
    assert fitting_format(wanted, 704) == WeightFormat("int4", 64, 64)
    assert fitting_format(wanted, 96) == WeightFormat("int4", 32, 64)
    assert fitting_format(wanted, 172) == WeightFormat("int8", 0, 64)
    assert fitting_format(WeightFormat("int8", 0, 64), 172) == WeightFormat("int8", 0, 64)


def test_dummy_weights_are_quantized_too(folder):
    first, second = (load(folder, "dummy", quantization="int4") for _ in range(2))
    weight = first.model.layers[0].mlp.gate_up_proj.weight
    assert weight.format.name == "int4"
    assert torch.equal(ops.unpack_weight(weight), ops.unpack_weight(second.model.layers[0].mlp.gate_up_proj.weight))
    assert ops.unpack_weight(weight).std() > 0.01


def test_ranks_quantize_their_own_share(folder):
    """Column shards are the rows of the whole; a row shard has its own scales in int8 and the whole's groups in int4."""
    with parallel.as_rank(1, 2):
        mine = load(folder, quantization="int4").model.layers[0]
    whole = load(folder, quantization="int4").model.layers[0]
    down, o_proj = ops.unpack_weight(whole.mlp.down_proj.weight), ops.unpack_weight(whole.self_attn.o_proj.weight)
    assert torch.equal(ops.unpack_weight(mine.mlp.down_proj.weight), down[:, 96:])
    assert torch.equal(ops.unpack_weight(mine.self_attn.o_proj.weight), o_proj[:, 64:])
    gate, up = ops.unpack_weight(whole.mlp.gate_up_proj.weight).chunk(2)
    assert torch.equal(ops.unpack_weight(mine.mlp.gate_up_proj.weight), torch.cat((gate[96:], up[96:])))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_greedy_tokens_mostly_stay(tmp_path, quantization):
    """The whole way through a runner, tied head included."""
    from quire.executor.local import LocalExecutor
    from quire.sampling_params import SamplingParams

    path = save(make_model("qwen3-gqa-tied", hidden_size=128, intermediate_size=256), tmp_path)
    config = make_config(path)
    quantized = dataclasses.replace(config.model, quantization=quantization, embedding_quantization="int8")
    prompts = draw_prompts(8, 40)

    def run(config) -> list[int]:
        jobs = [Job(f"r{i}", p, SamplingParams(temperature=0, max_tokens=1)) for i, p in enumerate(prompts)]
        return [job.output[0] for job in Driver(LocalExecutor(config)).run(jobs)]

    exact, rounded = run(config), run(dataclasses.replace(config, model=quantized))
    assert sum(a == b for a, b in zip(exact, rounded)) >= (7 if quantization == "int8" else 4)


MEASURE = """
import json, sys, torch
from quire.config.hf import load_hf_config
from quire.config.types import LoadConfig, ModelConfig
from quire.loader import load_model
from quire.loader.load import weight_bytes

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024

def load(folder):
    config = ModelConfig(folder, folder, folder, load_hf_config(folder), dtype, 64, ("m",), quantization=precision,
                         embedding_quantization=precision)
    return load_model(config, LoadConfig(), torch.device("cpu"))

dtype, precision = sys.argv[3], sys.argv[4] if sys.argv[4] != "none" else None
load(sys.argv[1])
before = memory("VmHWM")
model = load(sys.argv[2])
print(json.dumps({"growth": memory("VmHWM") - before, "weights": weight_bytes(model)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_float_weights_are_never_held(folder, tmp_path):
    """160 MB of float32 become 40 MB; beyond those the process grows by little more than one piece of 16 MB."""
    write_large(folder, tmp_path, 150_000, torch.float32)
    found = measure(folder, tmp_path, "float32", "int8")
    assert found["weights"] < 42e6
    assert found["growth"] < found["weights"] + 34e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("dtype", "quantization"), [("bfloat16", "none"), ("float32", "none"), ("bfloat16", "int8"), ("bfloat16", "int4")]
)
def test_peak_memory(folder, tmp_path, dtype, quantization):
    """Loading a checkpoint of shards takes at most 1.15 times what stays."""
    write_large(folder, tmp_path, 1_200_000, torch.bfloat16)
    found = measure(folder, tmp_path, dtype, quantization)
    assert found["weights"] > 150e6
    assert found["growth"] <= 1.15 * found["weights"]


def write_large(folder, target, vocab_size, dtype) -> None:
    """The checkpoint with another vocabulary, in two shards."""
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": vocab_size}
    (target / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["model.embed_tokens.weight"] = torch.randn(vocab_size, 128, dtype=dtype)
    save_file({"lm_head.weight": torch.randn(vocab_size, 128, dtype=dtype)}, target / "model-2.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, target / "model-1.safetensors")


def measure(folder, target, dtype, quantization) -> dict[str, int]:
    """What loading `target` adds to a process that has loaded `folder`, and what of it stays."""
    command = [sys.executable, "-c", MEASURE, str(folder), str(target), dtype, quantization]
    found: dict[str, int] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found
