"""Models as GGUF: every architecture's names, sizes and reorderings; every type's numbers, to the bit; answers."""

from __future__ import annotations

import dataclasses

import gguf
import numpy as np
import pytest
import torch

from quire import ops
from quire.config.hf import config_of
from quire.config.types import LoadConfig
from quire.errors import ConfigError, ModelLoadError, UnsupportedModelError
from quire.executor.local import LocalExecutor
from quire.loader import load_model
from quire.loader.configuration import checkpoint_in, read_checkpoint_fields
from quire.loader.gguf.blocks import BLOCK_TYPES
from quire.loader.gguf.header import read_header
from quire.ops.weights import WeightParts
from quire.sampling_params import SamplingParams
from tests.loader.gguf.writing import all_in, random_blocks, write_model, write_plain
from tests.models import plain_torch
from tests.models.checkpoints import draw_prompts, make_model, save, weights_of
from tests.models.drive import Driver, Job, make_config

CPU = torch.device("cpu")
_ONE_MSCALE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "llama-gqa-tied-llama3rope": {},
    "llama-mha-biases-untied": {},
    "qwen2-gqa-tied-yarn": {},
    "qwen3-gqa-tied": {},
    "phi3-window": {},
    "phi3-short-longrope-tied": {},
    "phi3-partial-rotary": {},
    "gemma-multi-query": {},
    "gemma2-windows-and-caps": {"query_pre_attn_scalar": 80},
    "gemma3-windows": {"query_pre_attn_scalar": 80},
    "gemma3-scaled-rope": {"query_pre_attn_scalar": 96, "layer_types": ["sliding_attention"] * 3},
    "starcoder2-window": {"sliding_window": None},
    "stablelm-biases": {},
    "stablelm-parallel-head-norms": {},
    "gpt2-wide-heads": {},
    "falcon-7b": {},
    "falcon-40b": {},
    "falcon-11b-one-norm": {"num_kv_heads": 2},
    "olmo2-gqa": {},
    "granite-gqa-tied": {},
    "granite-biases-untied": {},
    "glm4-gqa": {},
    "glm4-multi-query-tied": {},
    "phi-plain": {"intermediate_size": 640},
    "gpt-neox-parallel": {},
    "gpt-neox-sequential-tied": {"hidden_act": "gelu"},
    "bloom-wide-heads": {"seq_length": 512},
    "bloom-odd-heads-adding-to-norms": {"apply_residual_connection_post_layernorm": False, "seq_length": 512},
    "glm-gqa": {"head_dim": 24},
    "glm-multi-query-tied": {"head_dim": 32},
    "mixtral-gqa": {},
    "mixtral-windowed-tied": {"sliding_window": None},
    "qwen2-moe-shared-expert": {"mlp_only_layers": []},
    "qwen2-moe-sparse-step-windowed": {"decoder_sparse_step": 1, "use_sliding_window": False, "norm_topk_prob": False},
    "qwen3-moe-gqa": {"mlp_only_layers": []},
    "deepseek-v2-lite": {"rope_parameters": _ONE_MSCALE},
    "deepseek-v2-groups": {"attention_bias": False},
    "deepseek-v3": {"rope_parameters": _ONE_MSCALE},
    "deepseek-v3-halves": {"rope_interleave": True, "attention_bias": False, "n_group": None, "topk_group": None},
}
"""Shapes of tests/models, with what no GGUF file can say (an attention scale of one's own) set to what it means."""
NOT_SAID = {"fields", "bos_token_id", "eos_token_ids", "rope_scaling", "sliding_window_layers", "dtype", "quantization"}
NOT_SAID |= {"attention_bias", "attention_out_bias", "mlp_bias"}
"""Fields of the configuration that may differ in spelling, that these files leave out, or that only some families read."""
OF_OTHER_NORMS = {"rms_norm_eps", "layer_norm_eps"}


def load_config(path):
    return config_of(read_checkpoint_fields(path), path)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def load(path, **options):
    config = make_config(path).model
    return load_model(dataclasses.replace(config, **options), LoadConfig(), CPU)


def logprobs_of(path, prompts, **options) -> torch.Tensor:
    """Of the tokens of some prompts, and of what comes next."""
    config = make_config(path)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options))
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1, prompt_logprobs=1)
    jobs = [Job(str(i), prompt, params) for i, prompt in enumerate(prompts)]
    executor = LocalExecutor(config)
    try:
        Driver(executor).run(jobs)
    finally:
        executor.shutdown()
    found = [row.logprobs[0] for job in jobs for row in (*job.prompt_logprobs, *job.logprobs) if row is not None]
    return torch.tensor(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_architecture_is_read_as_from_its_folder(tmp_path, shape):
    model = make_model(shape, **SHAPES[shape])
    file, folder = write_model(model, tmp_path / "model.gguf"), save(model, tmp_path / "folder")
    ours, theirs = load_config(file), load_config(folder)
    skipped = NOT_SAID | (OF_OTHER_NORMS if ours.rms_norm_eps != theirs.rms_norm_eps else set())
    for field in dataclasses.fields(ours):
        if field.name not in skipped:
            mine, wanted = getattr(ours, field.name), getattr(theirs, field.name)
            assert mine == pytest.approx(wanted) if isinstance(wanted, float) else mine == wanted, field.name
    mine, wanted = weights_of(load(file)), weights_of(load(folder))
    assert mine.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=3e-7 if "norm" in name else 0, msg=name)
    prompts = draw_prompts(3, 40)
    torch.testing.assert_close(logprobs_of(file, prompts), logprobs_of(folder, prompts), rtol=1e-4, atol=1e-4)


PLAIN = {
    "baichuan-7b": (lambda: plain_torch.baichuan(num_heads=3, has_alibi=False, has_unit_rows=False), 32),
    "baichuan-13b": (lambda: plain_torch.baichuan(num_heads=3, has_alibi=True, has_unit_rows=False), 3),
    "qwen": (lambda: plain_torch.qwen(num_heads=3, head_dim=32, base=500000.0), 3),
    "chatglm3": (lambda: plain_torch.chatglm(num_heads=6, num_groups=2, head_dim=16), 3),
    "chatglm2": (lambda: plain_torch.chatglm(num_heads=3, num_groups=1, head_dim=32, ratio=8.0), 3),
}
"""Architectures that transformers has no classes for, and how many layers they have: Baichuan's sizes are told apart by it."""


@pytest.mark.parametrize("name", PLAIN)
def test_an_architecture_of_plain_torch_is_read_as_from_its_folder(tmp_path, monkeypatch, name):
    make, layers = PLAIN[name]
    monkeypatch.setattr(plain_torch, "LAYERS", layers)
    model = make()
    file, folder = write_plain(model, tmp_path / "model.gguf"), model.save(tmp_path / "folder")
    prompts = draw_prompts(3, 40)
    torch.testing.assert_close(logprobs_of(file, prompts), logprobs_of(folder, prompts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ["deepseek-v2-groups", "deepseek-v3"])
def test_latents_as_the_first_converters_wrote_them(tmp_path, shape):
    model = make_model(shape, attention_bias=False, rope_parameters=_ONE_MSCALE)
    whole = write_model(model, tmp_path / "whole.gguf", latents_whole=True)
    cut = write_model(model, tmp_path / "cut.gguf")
    same_weights(weights_of(load(whole)), weights_of(load(cut)))
    assert load_config(whole).head_dim == load_config(cut).head_dim == model.config.qk_nope_head_dim + 16
    assert load_config(whole).num_key_value_heads == load_config(cut).num_key_value_heads


@pytest.mark.parametrize(
    "shape", ["llama-gqa-tied-llama3rope", "llama-mha-biases-untied", "mixtral-gqa", "qwen2-moe-shared-expert"]
)
def test_projections_that_the_converter_put_together(tmp_path, shape):
    model = make_model(shape, **SHAPES[shape])
    together = write_model(model, tmp_path / "together.gguf", fused=True)
    names = {tensor.name for tensor in read_header(together).tensors}
    assert "blk.0.attn_qkv.weight" in names and "blk.0.attn_k.weight" not in names
    assert ("blk.0.ffn_gate_up_exps.weight" in names) == ("llama" not in shape)
    same_weights(weights_of(load(together)), weights_of(load(write_model(model, tmp_path / "apart.gguf"))))


def same_weights(mine, wanted) -> None:
    assert mine.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(mine[name], weight), name


# -- types -------------------------------------------------------------------------------------------------------

SIZES = dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64)


def as_loaded(model) -> dict[str, torch.Tensor]:
    """Matrices of a transformers Llama by the names of Quire's parameters."""
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    found = {}
    for name, tensor in state.items():
        if name.endswith("q_proj.weight"):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif name.endswith("gate_proj.weight"):
            found[name.replace("gate_proj", "gate_up_proj")] = torch.cat([tensor, state[name.replace("gate", "up")]])
        elif tensor.dim() == 2 and not name.endswith(("k_proj.weight", "v_proj.weight", "up_proj.weight")):
            found[name] = tensor
    return found


def check_matrices(model, loaded) -> None:
    mine, wanted = weights_of(loaded), as_loaded(model)
    assert wanted.keys() <= mine.keys()
    for name, matrix in wanted.items():
        assert torch.equal(mine[name], matrix), name


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_type_is_held_exactly_and_multiplied(tmp_path, kind):
    model = make_model("llama-mha-biases-untied", **SIZES)
    path = write_model(model, tmp_path / "model.gguf", all_in(kind))
    loaded = load(path)
    check_matrices(model, loaded)
    down = loaded.model.layers[1].mlp.down_proj.weight
    assert down.format == BLOCK_TYPES[kind].format and loaded.lm_head.weight.format == down.format
    inputs, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert down.num_bytes <= 1.1 * 256 * 512 // inputs * size
    prompts = draw_prompts(3, 20)
    exact = logprobs_of(save(model, tmp_path / "folder"), prompts)
    torch.testing.assert_close(logprobs_of(path, prompts), exact, rtol=0.1, atol=0.1)


MOE_SIZES = SIZES | dict(hidden_size=256, intermediate_size=256, num_hidden_layers=2)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_experts_of_a_type_are_held_exactly_and_multiplied(tmp_path, kind):
    model = make_model("mixtral-gqa", **MOE_SIZES)
    path = write_model(model, tmp_path / "model.gguf", all_in(kind))
    experts = load(path).model.layers[1].block_sparse_moe.experts
    assert experts.gate_up_proj.weight.format == experts.down_proj.weight.format == BLOCK_TYPES[kind].format
    wanted = model.model.layers[1].mlp.experts
    gates_then_ups = torch.cat([half.flatten(0, 1) for half in wanted.gate_up_proj.data.chunk(2, dim=1)])
    assert torch.equal(ops.unpack_weight(experts.gate_up_proj.weight), gates_then_ups)
    assert torch.equal(ops.unpack_weight(experts.down_proj.weight), wanted.down_proj.data.flatten(0, 1))
    prompts = draw_prompts(3, 20)
    exact = logprobs_of(save(model, tmp_path / "folder"), prompts)
    torch.testing.assert_close(logprobs_of(path, prompts), exact, rtol=0.1, atol=0.1)


LATENT_SIZES = dict(hidden_size=256, intermediate_size=256, moe_intermediate_size=256, kv_lora_rank=256)
LATENT_SIZES |= dict(num_attention_heads=4, num_key_value_heads=4, q_lora_rank=256, qk_nope_head_dim=32, qk_rope_head_dim=32)
LATENT_SIZES |= dict(v_head_dim=64, rope_parameters=_ONE_MSCALE)


@pytest.mark.parametrize("latents_whole", [True, False], ids=["whole", "cut"])
def test_latents_in_blocks(tmp_path, latents_whole):
    """The rows of W_UK are 32 numbers long when it is cut off, so it is in another type, as llama.cpp would have it."""
    kinds = {"attn_k_b": "Q8_0", "ffn_down_exps": "Q6_K", "ffn_down_shexp": "Q6_K"}
    model = make_model("deepseek-v3", **LATENT_SIZES)
    path = write_model(
        model,
        tmp_path / "model.gguf",
        lambda name, _: kinds.get(name.split(".")[-2], "Q4_K"),
        latents_whole=latents_whole,
    )
    loaded, wanted = load(path, dtype="float32").model.layers[1], model.model.layers[1]
    heads = wanted.self_attn.kv_b_proj.weight.data.unflatten(0, (4, 96))
    attention = loaded.self_attn.kv_b_proj
    assert torch.equal(ops.unpack_weight(attention.to_latent.weight).unflatten(0, (4, 256)), heads[:, :32].mT)
    assert torch.equal(ops.unpack_weight(attention.to_value.weight).unflatten(0, (4, 64)), heads[:, 32:])
    formats = [loaded.mlp.experts.gate_up_proj.weight.format, loaded.mlp.experts.down_proj.weight.format]
    formats.append(loaded.mlp.shared_experts.down_proj.weight.format)
    assert [format.name for format in formats] == ["uint4", "uint6", "uint6"]
    prompts = draw_prompts(3, 20)
    exact = logprobs_of(save(model, tmp_path / "folder"), prompts)
    torch.testing.assert_close(logprobs_of(path, prompts), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_kept(tmp_path, kind):
    model = make_model("llama-mha-biases-untied", **SIZES)
    path = write_model(model, tmp_path / "model.gguf", all_in(kind))
    config = load_config(path)
    assert config.dtype == {"F16": "float16", "BF16": "bfloat16"}[kind] and config.quantization is None
    loaded = load(path, dtype=config.dtype)
    check_matrices(model, loaded)
    assert loaded.model.layers[0].mlp.down_proj.weight.format.name == config.dtype
    rounded = load(path, dtype=config.dtype, quantization="int8").model.layers[0].mlp.down_proj.weight
    assert rounded.format.name == "int8"


def test_parts_of_several_types_lie_one_below_the_other(tmp_path):
    kinds = {"attn_v": "Q6_K", "attn_k": "Q8_0", "ffn_down": "Q5_0"}
    model = make_model("llama-mha-biases-untied", **SIZES)
    path = write_model(
        model, tmp_path / "model.gguf", lambda name, _: kinds.get(name.split(".")[-2], "Q4_K")
    )
    loaded = load(path)
    check_matrices(model, loaded)
    weight = loaded.model.layers[0].self_attn.qkv_proj.weight
    assert isinstance(weight, WeightParts)
    assert [part.format.name for part in weight.parts] == ["uint4", "uint8", "uint6"]
    assert [part.output_size for part in weight.parts] == [256, 128, 128]
    x = torch.randn(5, 256)
    apart = torch.cat([ops.linear(x, part) for part in weight.parts], -1)
    assert torch.equal(ops.linear(x, weight), apart)
    prompts = draw_prompts(3, 20)
    exact = logprobs_of(save(model, tmp_path / "folder"), prompts)
    torch.testing.assert_close(logprobs_of(path, prompts), exact, rtol=0.1, atol=0.1)


def test_a_gate_and_an_up_of_two_types_become_floats(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    path = write_model(
        model, tmp_path / "model.gguf", lambda name, _: "Q4_0" if "ffn_gate" in name else "Q8_0"
    )
    loaded = load(path, dtype="float32")
    check_matrices(model, loaded)
    assert loaded.model.layers[0].mlp.gate_up_proj.weight.format.name == "float32"


@pytest.mark.parametrize("shape", ["llama-gqa-tied-llama3rope", "qwen3-moe-gqa"])
@pytest.mark.parametrize("chunk", [5, 64])
def test_every_schedule_gives_the_same_bits(tmp_path, shape, chunk):
    """Alone and in a batch, in chunks: two-level scales, minima and stacked parts in one model."""
    kinds = {"attn_v": "Q6_K", "ffn_down": "Q5_K", "ffn_down_exps": "Q6_K"}
    experts = dict(mlp_only_layers=[], moe_intermediate_size=256) if "moe" in shape else {}
    model = make_model(shape, hidden_size=256, intermediate_size=512, head_dim=64, **experts)
    path = write_model(
        model, tmp_path / "model.gguf", lambda name, _: kinds.get(name.split(".")[-2], "Q4_K")
    )
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3)
    prompts = draw_prompts(6, 40)

    def run(jobs, chunk):
        executor = LocalExecutor(make_config(path))
        try:
            return Driver(executor, chunk=chunk).run(jobs)
        finally:
            executor.shutdown()

    together = run([Job(str(i), prompt, params) for i, prompt in enumerate(prompts)], chunk)
    for i in (0, 3, 5):
        (alone,) = run([Job("alone", prompts[i], params)], 64)
        assert alone.output == together[i].output
        assert [row.logprobs for row in alone.logprobs] == [row.logprobs for row in together[i].logprobs]


# -- what cannot be loaded -----------------------------------------------------------------------------------------


def write_with(path, architecture="llama", **values):
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        writer.add_key_value(f"{architecture}.{key.replace('__', '.')}", value, gguf.GGUFValueType.get_type(value))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(32, dtype=np.float32))
    writer.add_tensor("token_embd.weight", random_blocks((8, 32), "Q8_0", 0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SMALL = dict(embedding_length=32, block_count=1, attention__head_count=1, attention__key_length=8)
SMALL |= dict(feed_forward_length=32, context_length=64)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("mamba", {}, "GGUF architecture 'mamba' is not supported; supported are llama"),
        ("llama", {}, "llama.attention.head_count is missing"),
        ("llama", SMALL | {"expert_count": 8}, r"expert_count must be the number of experts in ffn_down_exps \(missing\), got 8"),
        ("qwen3", SMALL | {"expert_count": 8}, "qwen3 with experts is not supported"),
        ("llama", SMALL | {"nextn_predict_layers": 1}, "nextn_predict_layers must be 0 to 0, got 1"),
        ("llama", SMALL | {"attention__head_count": 0}, "head_count must be at least 1"),
        ("llama", SMALL | {"attention__key_length": 2**30}, "head_count must be at least 1, with heads .* that fit 32 rows"),
        ("llama", SMALL | {"embedding_length": 64}, r"embedding_length must be the columns of token_embd \[8, 32\], got 64"),
        ("llama", SMALL | {"block_count": 2**30}, "block_count must be the number of layers that have tensors"),
        ("llama", SMALL | {"block_count": "two"}, "llama.block_count must be an array of int, got 'two'"),
        ("llama", SMALL | {"rope__scaling__type": "su"}, "rope scaling of type 'su'"),
    ],
)
def test_configurations_that_are_refused(tmp_path, architecture, values, message):
    path = write_with(tmp_path / "model.gguf", architecture, **values)
    with pytest.raises((ModelLoadError, UnsupportedModelError), match=message):
        load_config(path)


def test_a_file_that_lacks_tensors(tmp_path):
    path = write_with(tmp_path / "model.gguf", **SMALL)
    with pytest.raises(ModelLoadError, match="missing: model.layers.0.mlp.down_proj.weight"):
        load(path)


def test_a_quantized_file_is_not_rounded_again(tmp_path):
    from quire.config.engine_args import EngineArgs

    path = write_with(tmp_path / "model.gguf", **SMALL)
    with pytest.raises(ConfigError, match="quantization must be gguf or none"):
        EngineArgs(model=str(path), quantization="int8").create_engine_config()
    assert EngineArgs(model=str(path), quantization="gguf").create_engine_config().model.quantization is None


def test_a_folder_with_one_file_is_that_file(tmp_path):
    file = write_with(tmp_path / "model.gguf", **SMALL)
    assert checkpoint_in(str(tmp_path), "auto") == checkpoint_in(str(tmp_path), "gguf") == str(file)
    assert checkpoint_in(str(tmp_path), "safetensors") == str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_in(str(tmp_path), "auto") == str(tmp_path)
    assert checkpoint_in(str(tmp_path), "gguf") == str(file)
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="holds 2 GGUF models: give one of them"):
        checkpoint_in(str(tmp_path), "gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match="holds no GGUF file"):
        checkpoint_in(str(tmp_path / "empty"), "gguf")
