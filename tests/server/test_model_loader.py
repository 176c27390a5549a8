"""How much memory a model will take, and what the options and Ollama's variables make of the pool."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from quire.config.engine_args import EngineArgs
from quire.errors import ConfigError, ModelLoadError
from quire.loader import resolve_model
from quire.loader.load import load_model, weight_bytes
from quire.runner.kv_cache import bytes_per_block, cache_dtype
from quire.server.args import ServerArgs
from quire.server.many_models import make_pool
from quire.server.model_loader import EngineLoader, EnginePlan, kv_bytes
from quire.server.models_dir import Checkpoint, ModelsDir
from tests.loader.gguf.writing import add_tokenizer, all_in, write_model
from tests.models.checkpoints import make_model
from tests.server.fake_models import add_checkpoint

GIB = 2**30
FOLIO = Checkpoint("folio", Path(resolve_model("folio")))
CONTEXT = 1024


def plan(memory_bytes: int = GIB, num_parallel: int | None = None, length: int | None = None, **args: object) -> EnginePlan:
    return EngineLoader(EngineArgs(**args), memory_bytes, num_parallel, length).plan(FOLIO)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "int8", "fp8"])
def test_kv_bytes_are_the_runners(dtype: str) -> None:
    config = EngineArgs(model="folio", kv_cache_dtype=dtype).create_engine_config()
    block = bytes_per_block(config.model.hf, cache_dtype(config), 16)
    assert [kv_bytes(config, tokens) for tokens in (1, 16, 17, 160)] == [block, block, 2 * block, 10 * block]


@pytest.mark.parametrize("quantization", [None, "int8", "int4", "fp8"])
def test_the_weights_are_close_to_what_is_loaded(quantization: str | None) -> None:
    made = plan(quantization=quantization)
    config = made.args.create_engine_config()
    real = weight_bytes(load_model(config.model, config.load, torch.device("cpu")))
    assert made.args.kv_cache_memory_bytes is not None
    assert made.num_bytes - made.args.kv_cache_memory_bytes == pytest.approx(real, rel=0.15)


def test_the_size_of_the_kv_cache() -> None:
    one = kv_bytes(EngineArgs(model="folio").create_engine_config(), CONTEXT)
    assert plan().args.kv_cache_memory_bytes == 4 * one
    assert plan(num_parallel=2).args.kv_cache_memory_bytes == 2 * one
    assert plan(memory_bytes=8 * one).args.kv_cache_memory_bytes == 2 * one  # a quarter of all
    assert plan(memory_bytes=one).args.kv_cache_memory_bytes == one  # never less than one request
    assert plan(kv_cache_memory_bytes=12345).args.kv_cache_memory_bytes == 12345
    fixed = plan(num_gpu_blocks_override=10)
    assert fixed.args.kv_cache_memory_bytes is None and fixed.num_bytes < plan().num_bytes


def test_options_of_every_model() -> None:
    made = plan(length=256, num_parallel=3, seed=7)
    assert (made.args.max_model_len, made.args.max_num_seqs, made.args.seed) == (256, 3, 7)
    assert (made.args.model, made.args.served_model_name) == (str(FOLIO.folder), "folio")
    assert plan(length=10**6).args.max_model_len == CONTEXT
    assert plan(length=256, max_model_len=128).args.max_model_len == 128
    assert plan(num_parallel=3, max_num_seqs=9).args.max_num_seqs == 9


@pytest.mark.parametrize("place", ["x.gguf", "x"])
def test_a_gguf_file_and_a_folder_with_one(tmp_path: Path, place: str) -> None:
    model = make_model("llama-mha-biases-untied", hidden_size=96, intermediate_size=96)
    file = write_model(model, tmp_path / "x.gguf", all_in("Q8_0"), add_tokenizer(FOLIO.folder))
    if place == "x":
        (tmp_path / "x").mkdir()
        file = file.rename(tmp_path / "x" / "model.gguf")
    (name,) = ModelsDir(tmp_path).names()
    made = EngineLoader(EngineArgs(), GIB).plan(ModelsDir(tmp_path).find(name))
    config = made.args.create_engine_config()
    assert (name, config.model.path, config.model.served_model_names) == ("x", str(file), ("x",))
    assert made.args.kv_cache_memory_bytes is not None
    assert made.num_bytes - made.args.kv_cache_memory_bytes == file.stat().st_size


def test_what_cannot_be_loaded_is_said_before_others_make_room(tmp_path: Path) -> None:
    folder = add_checkpoint(tmp_path, "x")
    with pytest.raises(ModelLoadError, match="x holds no weights"):
        EngineLoader(EngineArgs(), GIB).plan(Checkpoint("x", folder))
    shutil.copy(FOLIO.folder / "model.safetensors", folder)
    with pytest.raises(ModelLoadError, match="architectures"):
        EngineLoader(EngineArgs(), GIB).plan(Checkpoint("x", folder))


def test_a_tokenizer_is_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLIO.folder, folder)
    tokenizers = EngineLoader(EngineArgs(), GIB)._starter._tokenizers
    config = EngineArgs(model=str(folder)).create_engine_config()
    first = tokenizers.get(config)
    assert first is not None and tokenizers.get(config) is first
    (folder / "tokenizer_config.json").write_text("{}")
    assert tokenizers.get(config) is not first


def limits_of(tmp_path: Path, **args: object):  # type: ignore[no-untyped-def]
    return make_pool(EngineArgs(), ServerArgs(models_dir=str(tmp_path), **args))._limits  # type: ignore[arg-type]


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = limits_of(tmp_path)
    assert (default.keep_alive_s, default.max_models, default.wait_s) == (300, None, 300)
    assert default.memory_bytes > 0
    monkeypatch.setenv("OLLAMA_KEEP_ALIVE", "-1")
    monkeypatch.setenv("OLLAMA_MAX_LOADED_MODELS", "3")
    assert (limits_of(tmp_path).keep_alive_s, limits_of(tmp_path).max_models) == (math.inf, 3)
    given = limits_of(tmp_path, keep_alive="1h", max_loaded_models=2, models_memory="2G", models_wait=1)
    assert (given.keep_alive_s, given.max_models, given.memory_bytes, given.wait_s) == (3600, 2, 2 * GIB, 1)
    monkeypatch.setenv("OLLAMA_MAX_LOADED_MODELS", "0")
    assert limits_of(tmp_path).max_models is None
    monkeypatch.setenv("OLLAMA_KEEP_ALIVE", "soon")
    with pytest.raises(ConfigError, match="OLLAMA_KEEP_ALIVE must be seconds"):
        limits_of(tmp_path)


def test_a_model_from_elsewhere_comes_first(tmp_path: Path) -> None:
    add_checkpoint(tmp_path, "a")
    args = ServerArgs(models_dir=str(tmp_path))
    assert make_pool(EngineArgs(model="folio"), args).names() == ["folio", "a"]
    assert make_pool(EngineArgs(model="folio", served_model_name=["x", "y"]), args).names() == ["x", "a"]
    with pytest.raises(ConfigError, match="models_dir must be a folder"):
        make_pool(EngineArgs(), ServerArgs(models_dir=str(tmp_path / "none")))
