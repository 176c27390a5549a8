"""Checkpoints in float16 on a CPU: kept as they are, computed exactly, and what `dtype` makes of others."""

from __future__ import annotations

import pytest
import torch

from quire.config.engine_args import EngineArgs
from quire.engine.resolve import resolve_config
from quire.errors import ModelLoadError
from quire.loader import load_model
from quire.loader.load import weight_bytes
from quire.ops import cpu
from tests.models.checkpoints import make_model, save, weights_of
from tests.models.test_every_schedule import ALONE, run
from tests.quant.checks import SIZES, close_logits, same_under_every_schedule

MODEL = "llama-mha-biases-untied"


def load(folder, dtype):
    args = EngineArgs(model=str(folder), device="cpu", skip_tokenizer_init=True, dtype=dtype)
    config = resolve_config(args, offline=True)
    return config, load_model(config.model, config.load, torch.device("cpu"))


def test_float16_takes_its_size_and_is_computed_as_float32_is(tmp_path, caplog):
    model = make_model(MODEL, **SIZES).half()
    save(model, tmp_path)
    config, loaded = load(tmp_path, dtype="auto")
    assert config.model.dtype == "float16"
    matrices = [loaded.model.embed_tokens, loaded.lm_head, *(layer.mlp.down_proj for layer in loaded.model.layers)]
    assert {layer.weight.format.name for layer in matrices} == {"float16"}
    expected = model.state_dict()
    for name, tensor in weights_of(loaded).items():
        if name in expected:
            assert torch.equal(tensor, expected[name].float())
    in_file = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    small = sum(parameter.nbytes for parameter in loaded.parameters())  # norms and biases, in float32
    assert weight_bytes(loaded) - small / 2 <= 1.01 * in_file
    close_logits(tmp_path, model, 1e-2)  # the KV cache is float16 too
    same_under_every_schedule(tmp_path, caplog)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
def test_its_logits_are_those_of_the_same_weights_in_float32(tmp_path):
    save(make_model(MODEL, **SIZES).half(), tmp_path)
    narrow, wide = (run(tmp_path, False, dtype=dtype, kv_cache_dtype="float32", **ALONE)[1] for dtype in ("float16", "float32"))
    assert narrow == wide


def test_other_checkpoints_are_rounded_to_float16_where_that_is_asked_for(tmp_path):
    model = make_model(MODEL, **SIZES).bfloat16()
    save(model, tmp_path)
    assert load(tmp_path, dtype="auto")[0].model.dtype == "bfloat16"
    loaded = load(tmp_path, dtype="float16")[1]
    head = model.lm_head.weight.detach()
    assert loaded.lm_head.weight.format.name == "float16"
    assert torch.equal(weights_of(loaded)["lm_head.weight"], head.half().float())
    with torch.no_grad():
        head[3, 5] = 1e6
    save(model, tmp_path)
    with pytest.raises(ModelLoadError, match="lm_head.weight has numbers of up to 999424, but float16 ends at 65504"):
        load(tmp_path, dtype="float16")
