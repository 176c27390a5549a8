"""Checkpoints of every format load to the same weights; those that do not fit are refused with names."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import parallel
from quire.config.hf import load_hf_config
from quire.config.types import LoadConfig, ModelConfig
from quire.errors import HubError, ModelLoadError, UnsupportedModelError
from quire.loader import hub, load_model, progress, resolve_model
from quire.loader.formats import read_weights
from quire.models import ModelRegistry
from tests.models.checkpoints import make_model, save, weights_of

CPU = torch.device("cpu")
SHAPE = "qwen2-windowed-upper-layers"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.set_num_threads(1)
    return save(make_model(SHAPE), tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original, tmp_path):
    """A copy whose weights a test may spoil."""
    (tmp_path / "config.json").write_text((original / "config.json").read_text())
    save_file(load_file(original / "model.safetensors"), tmp_path / "model.safetensors")
    return tmp_path


def config_of(folder, dtype="float32") -> ModelConfig:
    return ModelConfig(str(folder), str(folder), str(folder), load_hf_config(folder), dtype, 64, ("m",))


def load(folder, load_format="auto", dtype="float32"):
    return load_model(config_of(folder, dtype), LoadConfig(load_format=load_format), CPU)


def change(folder, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same(model, other) -> None:
    mine, theirs = weights_of(model), weights_of(other)
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name]), name


def test_merged_parameters_hold_the_checkpoint_in_order(original):
    model, tensors = load(original), load_file(original / "model.safetensors")
    prefix = "model.layers.1.self_attn."
    parts = [tensors[f"{prefix}{x}_proj.weight"] for x in "qkv"]
    assert torch.equal(weights_of(model)[prefix + "qkv_proj.weight"], torch.cat(parts))
    bias = torch.cat([tensors[f"{prefix}{x}_proj.bias"] for x in "qkv"])
    assert torch.equal(model.get_parameter(prefix + "qkv_proj.bias"), bias)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_sharded_and_pickled_forms_are_the_same(original, tmp_path):
    model = load(original)
    sharded = save(make_model(SHAPE), tmp_path / "sharded", max_shard_size="150KB")
    assert (sharded / "model.safetensors.index.json").exists()
    assert_same(model, load(sharded))
    tensors = load_file(original / "model.safetensors")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text((original / "config.json").read_text())
    torch.save(tensors, tmp_path / "whole" / "pytorch_model.bin")
    assert_same(model, load(tmp_path / "whole"))
    names = sorted(tensors)
    weight_map = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({n: tensors[n] for n in names if weight_map[n] == file}, tmp_path / "parts" / file)
    (tmp_path / "parts" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(model, load(tmp_path / "parts"))
    os.unlink(tmp_path / "parts" / "pytorch_model-1.bin")
    with pytest.raises(ModelLoadError, match=r"not there: pytorch_model-1\.bin"):
        load(tmp_path / "parts")


def test_a_damaged_shard_is_named_before_any_is_taken_in(tmp_path):
    sharded = save(make_model(SHAPE), tmp_path, max_shard_size="150KB")
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 3
    for shard in shards[-2:]:
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=f"{shards[-2].name} cannot be read as safetensors: tensor .* ends at"):
        next(iter(read_weights(str(sharded))))


def test_tensors_come_in_the_order_of_the_file(tmp_path):
    header = {
        name: {"dtype": "U8", "shape": [8], "data_offsets": [start, start + 8]}
        for name, start in (("a", 16), ("b", 0), ("c", 8))
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(24)))
    found = [(name, tensor[0].item()) for name, tensor in read_weights(str(tmp_path))]
    assert found == [("b", 0), ("c", 8), ("a", 16)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_line_shows_how_far_it_is(original, monkeypatch, is_terminal):
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_REDRAW_S", 0)
    load(original)
    shown = stream.getvalue()
    if is_terminal:
        drawn = [int(share) for share in re.findall(r"\rloading weights: +(\d+) % of 0\.00 GiB", shown)]
        assert drawn == sorted(drawn) and len(set(drawn)) > 5 and 95 <= drawn[-1] <= 100
        assert shown.endswith("\r\x1b[K")
    else:
        assert shown == ""


def test_missing_and_unexpected_tensors_are_named(folder):
    def edit(tensors):
        del tensors["model.layers.0.self_attn.k_proj.bias"]
        tensors["model.layers.0.self_attn.k_proj.scale"] = torch.zeros(1)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    change(folder, edit)
    with pytest.raises(ModelLoadError) as error:
        load(folder)
    assert "missing: model.layers.0.self_attn.k_proj.bias;" in str(error.value)
    assert str(error.value).endswith("unexpected: model.layers.0.self_attn.k_proj.scale")


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"]
)
def test_a_wrong_shape_is_named(folder, name):
    change(folder, lambda tensors: tensors.update({name: tensors[name][1:].clone()}))
    with pytest.raises(ModelLoadError, match=f"tensor {name} has shape .* needs"):
        load(folder)


def test_a_tied_head_in_the_checkpoint_is_passed_over(tmp_path):
    path = save(make_model("qwen3-gqa-tied"), tmp_path)
    change(path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(199, 96)}))
    model = load(path)
    assert "lm_head.weight" not in weights_of(model)
    hidden = torch.eye(96)[:3]
    expected = load_file(path / "model.safetensors")["model.embed_tokens.weight"][:, :3].T
    torch.testing.assert_close(model.compute_logits(hidden), expected)


def test_damaged_and_absent_files(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read"):
        load(folder)
    os.unlink(folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="holds no weights"):
        load(folder)
    with pytest.raises(ModelLoadError, match="load_format must be"):
        load(folder, "gguf2")


class Malicious:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(folder, tmp_path, is_zip):
    os.unlink(folder / "model.safetensors")
    marker, file = tmp_path / "executed", folder / "pytorch_model.bin"
    if is_zip:
        torch.save({"model.norm.weight": Malicious(marker)}, file)
    else:
        file.write_bytes(pickle.dumps({"model.norm.weight": Malicious(marker)}, protocol=2))
    with pytest.raises(ModelLoadError, match="was not loaded"):
        load(folder)
    assert not marker.exists()


def test_dummy_weights_are_the_same_every_time(folder):
    os.unlink(folder / "model.safetensors")
    model = load(folder, "dummy", "bfloat16")
    assert_same(model, load(folder, "dummy", "bfloat16"))
    weight = weights_of(model)["model.layers.0.self_attn.qkv_proj.weight"]
    assert torch.equal(weight, weight.bfloat16().float())
    assert weight.std() > 0.01
    assert (model.get_parameter("model.norm.weight") == 1).all()


def test_unknown_architectures_and_registration(folder):
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["AbacusForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"AbacusForCausalLM.*LlamaForCausalLM"):
        load(folder)
    try:
        ModelRegistry.register_model("AbacusForCausalLM", "quire.models.qwen2:Qwen2ForCausalLM")
        assert "AbacusForCausalLM" in ModelRegistry.get_supported_archs()
        load(folder)
    finally:
        from quire import models

        models._registered.clear()
    with pytest.raises(ValueError, match="module:class"):
        ModelRegistry.register_model("X", "quire.models")


@pytest.mark.parametrize(("size", "kv_heads"), [(2, 2), (3, 1)])
def test_ranks_hold_the_checkpoint_between_them(tmp_path, size, kv_heads):
    """Shards side by side are the whole; key/value heads repeat when there are fewer than ranks."""
    sizes = dict(num_attention_heads=6, num_key_value_heads=kv_heads, intermediate_size=174)
    model = make_model("llama-mha-biases-untied", **sizes)
    path = save(model, tmp_path)
    whole = weights_of(load(path))
    ranks = []
    for rank in range(size):
        with parallel.as_rank(rank, size):
            ranks.append(weights_of(load(path)))

    def join(name, dim):
        return torch.cat([rank[name] for rank in ranks], dim)

    layer = "model.layers.1."
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        assert torch.equal(join(layer + name, 1), whole[layer + name])
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        joined = join(name, 0)
        assert torch.equal(joined[: len(whole[name])], whole[name]) and not joined[len(whole[name]) :].any()
    gate, up = whole[layer + "mlp.gate_up_proj.weight"].chunk(2)
    shares = [rank[layer + "mlp.gate_up_proj.weight"].chunk(2) for rank in ranks]
    assert torch.equal(torch.cat([share[0] for share in shares]), gate)
    assert torch.equal(torch.cat([share[1] for share in shares]), up)
    for name in ("self_attn.qkv_proj.weight", "self_attn.qkv_proj.bias"):
        q, k = whole[layer + name][:96], whole[layer + name][96:]
        assert torch.equal(torch.cat([rank[layer + name][: 96 // size] for rank in ranks]), q)
        for i, rank in enumerate(ranks):
            head = i * kv_heads // size
            assert torch.equal(rank[layer + name][96 // size :][:16], k[16 * head : 16 * (head + 1)])


def test_uneven_splits_are_refused(original):
    with (
        parallel.as_rank(0, 2),
        pytest.raises(ModelLoadError, match="must be divisible by tensor_parallel_size"),
    ):
        load(original)


# -- names of models -------------------------------------------------------------------------------------------


def test_a_folder_is_itself_and_bad_names_say_so(tmp_path):
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    for name in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c", " "):
        with pytest.raises(ModelLoadError, match="no folder"):
            resolve_model(name)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ModelLoadError, match="is a file"):
        resolve_model(str(file))


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="give a local folder, or download"):
        resolve_model("owner/name", download_dir=str(tmp_path))


def test_weights_are_chosen_by_what_the_repository_has():
    names = ["config.json", "pytorch_model.bin"]
    assert hub._patterns_of(names) == hub._PICKLED
    assert hub._patterns_of([*names, "model.safetensors"]) == hub._SAFETENSORS
