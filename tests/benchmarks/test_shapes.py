"""Checkpoints of the benchmarks: loadable by the engine, every id has a token. GGUF: names and the order of rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.peers.gguf_file import gguf_name, interleave_halves, write_gguf
from benchmarks.peers.model_files import make_once
from benchmarks.shapes import make_checkpoint, padded_vocabulary


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("T", tmp_path_factory.mktemp("shapes"), "bfloat16")


def test_every_id_has_a_token():
    vocabulary, merges = padded_vocabulary(2000)
    assert sorted(vocabulary.values()) == list(range(2000))
    assert all(first in vocabulary and first + second in vocabulary for first, second in merges)


def test_checkpoint_is_made_once_and_loads(checkpoint):
    from quire import LLM, SamplingParams

    assert make_checkpoint("T", checkpoint.parent, "bfloat16") == checkpoint
    assert json.loads((checkpoint / "config.json").read_text())["torch_dtype"] == "bfloat16"
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    with LLM(model=str(checkpoint), dtype="float32", num_threads=1, max_model_len=64) as llm:
        tokenizer = llm.get_tokenizer()
        assert tokenizer.decode(tokenizer.encode("hello, world")) == "hello, world"
        (output,) = llm.generate({"prompt_token_ids": [300, 7899]}, params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 3


def test_gguf_names():
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    assert gguf_name("model.layers.7.self_attn.q_proj.bias") == "blk.7.attn_q.bias"
    assert gguf_name("model.layers.7.post_attention_layernorm.weight") == "blk.7.ffn_norm.weight"


def test_rotary_halves_become_pairs():
    rows = np.arange(8).reshape(8, 1)  # two heads of four rows
    assert interleave_halves(rows, num_heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_gguf_file(checkpoint, tmp_path):
    gguf = pytest.importorskip("gguf")
    write_gguf(checkpoint, tmp_path / "T.gguf", "int4")
    reader = gguf.GGUFReader(tmp_path / "T.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.1.ffn_down.weight"] == "Q4_0" and types["blk.1.attn_norm.weight"] == "F32"
    assert len(types) == 3 + 2 * 9


def test_files_are_made_once(tmp_path):
    made = []

    def make(path):
        made.append(path.name)
        path.write_text("whole")

    target = tmp_path / "folder" / "model.gguf"
    (tmp_path / "folder").mkdir()
    target.with_name("partial-model.gguf").write_text("left by a run that was cut short")
    assert make_once(target, make) == make_once(target, make) == target
    assert made == ["partial-model.gguf"] and target.read_text() == "whole"
