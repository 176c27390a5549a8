"""`quire quantize --format gguf`: what it writes is read again as the same model, by Quire and by the `gguf` package."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel

from quire.cli.main import main
from quire.cli.quantize import add_parser
from quire.config.types import LoadConfig
from quire.errors import ConfigError, UnsupportedModelError
from quire.loader import load_model, resolve_model
from quire.quantize.gguf.tokenizer import tokenizer_values
from quire.quantize.gguf.write import write_gguf
from quire.quantize.options import QuantizeOptions
from quire.tokenizer import load_tokenizer
from quire.tokenizer.sentencepiece_bpe import read_model
from tests.loader.gguf.test_folio import answers
from tests.models.checkpoints import make_model, save, weights_of
from tests.models.drive import make_config
from tests.shared_data import shared

VOCAB_SIZE = 320
SHAPES = {
    "llama-gqa-tied-llama3rope": "llama",
    "llama-mha-biases-untied": "llama",
    "mistral-window": "llama",
    "qwen2-gqa-tied-yarn": "qwen2",
    "qwen3-gqa-tied": "qwen3",
    "phi3-window": "phi3",
    "phi3-short-longrope-tied": "phi3",
    "phi3-partial-rotary": "phi3",
    "gemma-multi-query": "gemma",
    "gemma2-windows-and-caps": "gemma2",
    "gemma3-windows": "gemma3",
    "starcoder2-window": "starcoder2",
    "stablelm-parallel-head-norms": "stablelm",
    "gpt2-wide-heads": "gpt2",
    "falcon-7b": "falcon",
    "falcon-40b": "falcon",
    "olmo2-gqa": "olmo2",
    "granite-biases-untied": "granite",
    "glm4-multi-query-tied": "glm4",
}
"""Shapes of tests/models, and what llama.cpp calls their architecture."""
SAID = {"gemma2-windows-and-caps": {"query_pre_attn_scalar": 80}, "gemma3-windows": {"query_pre_attn_scalar": 80}}
"""Attention scales of one's own, which no GGUF file can say, set to what it means."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("QUIRE_NUM_THREADS", "1")


def byte_bpe(cut: str | None = None, **options) -> Tokenizer:
    """A small tokenizer of bytes and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("1", "2"), ("12", "3")]
    vocabulary = {token: token_id for token_id, token in enumerate(alphabet + [left + right for left, right in merges])}
    backend = Tokenizer(BPE(vocabulary, merges, **options))
    if cut is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(cut), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<|end|>", special=True), AddedToken("<tool>", special=False)])
    return backend


def save_tokenizer(backend: Tokenizer, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "eos_token": "<|end|>", '
        '"chat_template": "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"}'
    )
    return folder


def no_report(what: str, total: int):
    return lambda: None


def convert(folder: Path, target: Path, kind: str = "F32") -> Path:
    config = make_config(folder).model
    source = load_file(folder / "model.safetensors")
    write_gguf(target, config, load_tokenizer(folder), source, kind, no_report)
    return target


def load(path):
    return load_model(make_config(path).model, LoadConfig(), torch.device("cpu"))


# -- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_an_architecture_is_written_and_read_as_the_same_model(tmp_path, shape):
    folder = save(make_model(shape, vocab_size=VOCAB_SIZE, **SAID.get(shape, {})), tmp_path / "folder")
    save_tokenizer(byte_bpe(), folder)
    file = convert(folder, tmp_path / "model.gguf")
    assert list(tmp_path.glob("*.gguf")) == [file]
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == SHAPES[shape]
    known = {name for names in gguf.MODEL_TENSORS.values() for name in names}
    names = {gguf.TENSOR_NAMES[name].replace(".{bid}", "") for name in known}
    for tensor in reader.tensors:
        module = tensor.name.rpartition(".")[0]
        assert module in names or ".".join([module.split(".")[0], module.split(".")[2]]) in names, tensor.name
    mine, wanted = weights_of(load(file)), weights_of(load(folder))
    assert mine.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=3e-7 if "norm" in name else 0, msg=name)


def test_types_of_a_mixture_are_in_the_file_and_weights_near(tmp_path):
    sizes = dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
    folder = save(make_model("llama-mha-biases-untied", vocab_size=VOCAB_SIZE, **sizes), tmp_path / "folder")
    save_tokenizer(byte_bpe(), folder)
    file = convert(folder, tmp_path / "model.gguf", "Q4_K_M")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds["output.weight"] == "Q6_K" and kinds["blk.0.ffn_up.weight"] == "Q4_K" and kinds["output_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.bias"] == "F32" and "Q6_K" in {kinds[f"blk.{i}.ffn_down.weight"] for i in range(3)}
    mine, wanted = weights_of(load(file)), weights_of(load(folder))
    for name, weight in wanted.items():
        assert (mine[name] - weight).norm() <= 0.09 * weight.norm(), name


def test_a_window_that_the_format_does_not_know_bounds_the_context(tmp_path, caplog):
    folder = save(make_model("mistral-window", vocab_size=VOCAB_SIZE, sliding_window=24), tmp_path / "folder")
    with caplog.at_level(logging.WARNING, "quire"):
        file = convert(save_tokenizer(byte_bpe(), folder), tmp_path / "model.gguf")
    assert "know no sliding window: context_length is the window, 24" in caplog.text
    assert gguf.GGUFReader(file).fields["llama.context_length"].contents() == 24


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ("opt-norm-before", {}, "format gguf is for .*LlamaForCausalLM.*, not for OPTForCausalLM: use format safetensors"),
        ("llama-mha-biases-untied", {"hidden_act": "gelu"}, "cannot say that hidden_act is 'gelu': it would be read as 'silu'"),
        ("gemma2-windows-and-caps", {"query_pre_attn_scalar": 96}, "cannot say that query_pre_attn_scalar is 96"),
        ("falcon-rw-alibi", {}, "cannot say that alibi is True|no place for tensor"),
        (
            "llama-gqa-tied-llama3rope",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
            "knows the rope scalings linear, yarn, llama3 and longrope, not 'dynamic'",
        ),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, shape, changes, message):
    folder = save(make_model(shape, vocab_size=VOCAB_SIZE, **changes), tmp_path / "folder")
    save_tokenizer(byte_bpe(), folder)
    with pytest.raises(UnsupportedModelError, match=message):
        convert(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf"))


# -- tokenizers ----------------------------------------------------------------------------------------------------


def values_of(folder: Path, size: int, ends: tuple[int, ...] = ()) -> dict:
    return tokenizer_values(load_tokenizer(folder), folder, size, ends)


GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("cut", "options", "normalizer", "name"),
    [
        (None, {}, None, "gpt-2"),
        (GPT4, {"ignore_merges": True}, None, "llama-bpe"),
        (GPT4, {}, None, "dbrx"),
        (GPT4.replace("{1,3}", ""), {}, normalizers.NFC(), "qwen2"),
        (GPT4.replace("{1,3}", ""), {}, None, "stablelm2"),
    ],
)
def test_cuts_get_the_name_that_llama_cpp_has_for_them(tmp_path, cut, options, normalizer, name):
    backend = byte_bpe(cut, **options)
    if normalizer is not None:
        backend.normalizer = normalizer
    values = values_of(save_tokenizer(backend, tmp_path), VOCAB_SIZE)
    assert values["tokenizer.ggml.pre"] == name and "tokenizer.huggingface.json" not in values


def test_the_parts_of_a_tokenizer(tmp_path):
    backend = byte_bpe()
    end = backend.token_to_id("<|end|>")
    backend.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", end)])
    values = values_of(save_tokenizer(backend, tmp_path), VOCAB_SIZE, (end, 5, 6))
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == VOCAB_SIZE and tokens[-1] == f"[PAD{VOCAB_SIZE - 1}]" and kinds[-1] == 5
    assert (kinds[end], kinds[end + 1], kinds[0]) == (3, 4, 1) and tokens[end : end + 2] == ["<|end|>", "<tool>"]
    assert values["tokenizer.ggml.merges"][:2] == ["h e", "Ġ t"]
    ends = [values[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "eom")]
    assert ends == [end, end, 5, 6]
    assert values["tokenizer.ggml.add_bos_token"] is True and values["tokenizer.ggml.add_eos_token"] is False
    assert values["tokenizer.chat_template"].startswith("{% for m in messages %}")


def test_cuts_of_its_own_go_in_whole(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "quire"):
        values = values_of(save_tokenizer(byte_bpe(r"..|.|\s"), tmp_path), VOCAB_SIZE)
    assert "the whole tokenizer.json too, which Quire reads and llama.cpp does not" in caplog.text
    assert '"regex":' in values["tokenizer.huggingface.json"].lower()


@pytest.mark.parametrize(
    ("name", "cuts"), [("gpt-neox-20b", None), ("gpt2", "gpt-2"), ("qwen2", "qwen2")], ids=lambda value: str(value)
)
def test_real_byte_level_tokenizers(name, cuts):
    folder = shared(f"tokenizers/{name}")
    tokenizer = load_tokenizer(folder)
    values = values_of(folder, tokenizer.vocab_size + 7)
    assert cuts is None or values["tokenizer.ggml.pre"] == cuts
    assert "tokenizer.huggingface.json" not in values or name == "gpt-neox-20b"


@pytest.mark.parametrize("has_model_file", [True, False])
@pytest.mark.parametrize("version", ["v1", "v3"])
def test_a_sentencepiece_tokenizer(tmp_path, version, has_model_file):
    """With tokenizer.model its own scores; from a tokenizer.json alone, scores in the order of the merges."""
    original = shared(f"tokenizers/mistral/tokenizer.model.{version}").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(original)
    tokenizer = load_tokenizer(tmp_path)
    if not has_model_file:
        (tmp_path / "tokenizer.model").unlink()
    values = tokenizer_values(tokenizer, tmp_path, tokenizer.vocab_size, (2,))
    assert values["tokenizer.ggml.model"] == "llama" and "tokenizer.huggingface.json" not in values
    kinds = np.array(values["tokenizer.ggml.token_type"])
    assert (kinds[0], kinds[1], kinds[2]) == (2, 3, 3) and (kinds == 6).sum() == 256
    (tmp_path / "tokenizer.model").write_bytes(original)
    theirs = np.array([piece.score for piece in read_model(tmp_path / "tokenizer.model").pieces])
    scores = np.array(values["tokenizer.ggml.scores"])
    joined = (kinds == 1) & (np.array(list(map(len, values["tokenizer.ggml.tokens"]))) > 1)
    assert (np.diff(theirs[joined][np.argsort(-scores[joined])]) <= 0).all()
    assert not has_model_file or (scores == theirs).all()
    assert values["tokenizer.ggml.add_bos_token"] is True and values["tokenizer.ggml.add_space_prefix"] is True


def test_tokenizers_that_are_refused(tmp_path):
    save_tokenizer(byte_bpe(), tmp_path)
    with pytest.raises(ConfigError, match="vocab_size is 100, but the tokenizer has token .* with id 100"):
        values_of(tmp_path, 100)
    words = Tokenizer(WordLevel({"a": 0, "<|end|>": 1}, unk_token="a"))
    with pytest.raises(ConfigError, match="not a tokenizer of type 'WordLevel': use format safetensors"):
        values_of(save_tokenizer(words, tmp_path / "words"), VOCAB_SIZE)


# -- the command ---------------------------------------------------------------------------------------------------


def test_folio_answers_as_folio(tmp_path, capsys):
    file = tmp_path / "folio.gguf"
    text = tmp_path / "text.txt"
    text.write_text("The library opens at nine. What is the capital of France? Paris. " * 8)
    command = ["quantize", "folio", "-o", str(file), "--format", "gguf", "--type", "BF16", "--calibration", str(text)]
    assert main([*command, "--num-samples", "1", "--max-tokens", "32"]) == 0
    printed = capsys.readouterr()
    assert "perplexity of the calibration text" in printed.out and "(1.0000)" in printed.out and "gguf BF16" in printed.err
    assert answers(str(file)) == answers("folio")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    original = load_file(Path(resolve_model("folio")) / "model.safetensors")
    stored = torch.from_numpy(tensors["blk.2.ffn_up.weight"].data.copy()).view(torch.bfloat16)
    assert torch.equal(stored, original["model.layers.2.mlp.up_proj.weight"])


def test_folio_in_four_bits_says_the_same(tmp_path):
    file = tmp_path / "folio.gguf"
    assert main(["quantize", "folio", "-o", str(file), "--format", "gguf", "--type", "Q4_K_M"]) == 0
    assert [answer[2] for answer in answers(str(file))][:2] == [answer[2] for answer in answers("folio")][:2]
    assert main(["quantize", str(file), "-o", str(tmp_path / "b.gguf"), "--format", "gguf", "--type", "Q8_0"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give type for format gguf, one of F32, F16, BF16, Q8_0"),
        (("--type", "IQ2_XS"), "type must be one of F32, .*, got 'IQ2_XS'"),
        (("--type", "Q8_0", "--method", "gptq"), "method must be rtn for format gguf, got 'gptq'"),
        (("--type", "Q8_0", "--bits", "4"), "bits is for format safetensors, got 4"),
        (("--type", "Q8_0", "--no-symmetric"), "symmetric is for format safetensors, got False"),
        (("--type", "Q8_0", "-o", "folder"), "output must be a file .gguf that is not there yet"),
    ],
)
def test_wrong_options_are_named(tmp_path, capsys, options, message):
    assert main(["quantize", "folio", "-o", str(tmp_path / "f.gguf"), "--format", "gguf", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_type_is_for_gguf_alone(tmp_path, capsys):
    assert main(["quantize", "folio", "-o", str(tmp_path / "x"), "--method", "rtn", "--type", "Q8_0"]) == 2
    assert "type is for format gguf, got 'Q8_0'" in capsys.readouterr().err


def test_every_option_has_a_flag():
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = vars(parser.parse_args(["quantize", "folio", "-o", "x"]))
    assert {field.name for field in dataclasses.fields(QuantizeOptions)} <= set(args)
