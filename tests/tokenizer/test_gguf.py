"""Tokenizers from GGUF metadata give the ids of the tokenizers that they were made from."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece

from quire.errors import ConfigError, ModelLoadError
from quire.tokenizer import load_tokenizer, render_chat
from quire.tokenizer.gguf_cuts import cuts_named
from tests.shared_data import shared
from tests.tokenizer.test_load import mistral_folder, multilingual

VECTORS = "tokenizers/gguf_vocab/ggml-vocab-{}.gguf"


def write(path: Path, add: Callable[[Any], None]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_bpe(folder: Path, pre: str, **added: int) -> Callable[[Any], None]:
    """vocab.json and merges.txt of a folder, and tokens beyond them."""

    def add(writer: Any) -> None:
        vocabulary = json.loads((folder / "vocab.json").read_text())
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        kinds = [gguf.TokenType.NORMAL] * len(tokens)
        for token in added:
            tokens.append(token)
            kinds.append(gguf.TokenType.CONTROL)
        merges = (folder / "merges.txt").read_text().splitlines()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges([merge for merge in merges if merge and not merge.startswith("#version")])

    return add


def sentencepiece_bpe(file: Path) -> Callable[[Any], None]:
    """A SentencePiece model, read by its own library."""

    def add(writer: Any) -> None:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        ids = range(model.vocab_size())
        kinds = [
            gguf.TokenType.UNKNOWN
            if model.is_unknown(i)
            else gguf.TokenType.CONTROL
            if model.is_control(i)
            else gguf.TokenType.BYTE
            if model.is_byte(i)
            else gguf.TokenType.NORMAL
            for i in ids
        ]
        writer.add_tokenizer_model("llama")
        writer.add_token_list([model.id_to_piece(i) for i in ids])
        writer.add_token_scores([model.get_score(i) for i in ids])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(model.bos_id())
        writer.add_eos_token_id(model.eos_id())

    return add


@pytest.mark.parametrize("name", ["gpt-2", "falcon"])
def test_published_vocabularies_and_vectors(name):
    path = shared(VECTORS.format(name))
    texts = path.with_suffix(".gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(i) for i in line.split()] for line in path.with_suffix(".gguf.out").read_text().split("\n")]
    tokenizer = load_tokenizer(path)
    assert [tokenizer.encode(text, add_special_tokens=False) for text in texts] == expected[: len(texts)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("folder", "pre"), [("qwen2", "qwen2"), ("gpt2", "gpt-2")])
def test_byte_level_bpe_gives_the_original_ids(tmp_path, folder, pre):
    original = shared(f"tokenizers/{folder}")
    tokenizer = load_tokenizer(write(tmp_path / "t.gguf", byte_bpe(original, pre)))
    reference = load_tokenizer(original)
    texts = [text for text in multilingual() if "<|" not in text]
    emma = shared("text/gutenberg_austen_emma.txt").read_text(encoding="utf-8")[:200_000]
    code = shared("text/humaneval.jsonl").read_text(encoding="utf-8")[:200_000]
    for text in (*texts, emma, code):
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_sentencepiece_gives_the_original_ids(tmp_path, version):
    file = shared(f"tokenizers/mistral/tokenizer.model.{version}")
    tokenizer = load_tokenizer(write(tmp_path / "t.gguf", sentencepiece_bpe(file)))
    reference = load_tokenizer(mistral_folder(tmp_path, version))
    emma = shared("text/gutenberg_austen_emma.txt").read_text(encoding="utf-8")[:50_000]
    for text in (*multilingual(), emma):
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(reference.encode(text))
    assert tokenizer.bos_token_id == 1 and tokenizer.encode("a")[0] == 1


def test_special_tokens_flags_and_templates(tmp_path):
    def add(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", "<s>", "</s>", "<tool>"])
        kinds = [gguf.TokenType.NORMAL] * 3 + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.USER_DEFINED]
        writer.add_token_types(kinds)
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(3)
        writer.add_eos_token_id(4)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)
        writer.add_chat_template([
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
            {"name": "tool_use", "template": "T"},
        ])

    tokenizer = load_tokenizer(write(tmp_path / "t.gguf", add))
    assert tokenizer.encode("ab<tool>a") == [3, 2, 5, 0, 4]
    assert tokenizer.encode("ab", add_special_tokens=False) == [2]
    assert tokenizer.decode([3, 2, 5, 4]) == "ab<tool>"
    assert tokenizer.all_special_ids == {3, 4}
    messages = [{"role": "user", "content": "ab"}]
    assert render_chat(tokenizer, messages) == "<s>ab"
    assert render_chat(tokenizer, messages, tools=[{"type": "function", "function": {"name": "f"}}]) == "T"


@pytest.mark.parametrize("name", ["llama-bpe", "tekken", "gpt-4o", "deepseek-v3", "starcoder", "default"])
def test_cuts_leave_nothing_out(name):
    import tokenizers

    cuts = cuts_named(name)
    text = "I'LL pay 12345 for\tHTTPServer's  \r\n\n naïve-cafés 東京タワー!!  ??\n x  "
    pieces = [(text, (0, len(text)))]
    split = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in cuts.patterns]
    )
    pieces = [piece for piece, _ in split.pre_tokenize_str(text)]
    assert "".join(pieces) == text and len(pieces) > 12
    assert ("123" in pieces) == (name in ("llama-bpe", "gpt-4o", "deepseek-v3", "default"))


def broken(model: str, **arrays: Any) -> Callable[[Any], None]:
    def add(writer: Any) -> None:
        writer.add_tokenizer_model(model)
        for name, values in arrays.items():
            writer.add_array(f"tokenizer.ggml.{name}", values)

    return add


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (broken("rwkv"), "tokenizer.ggml.model 'rwkv' is not supported"),
        (broken("gpt2"), "tokenizer.ggml.tokens is missing"),
        (broken("gpt2", tokens=["a"], token_type=[1, 1]), "token_type must be an array of 1 numbers, got 2"),
        (broken("llama", tokens=["a", "b"], scores=[1.0]), "scores must be an array of 2 numbers, got 1"),
        (broken("gpt2", tokens=["a"], merges=["a"]), "merges must be pairs of tokens, got 'a'"),
        (broken("gpt2", tokens=["a"], merges=["a b"]), "its tokenizer cannot be built"),
    ],
)
def test_what_cannot_be_built(tmp_path, add, message):
    with pytest.raises((ConfigError, ModelLoadError), match=message):
        load_tokenizer(write(tmp_path / "t.gguf", add))


def test_a_file_that_is_damaged(tmp_path):
    (tmp_path / "t.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40))
    with pytest.raises(ModelLoadError, match="1099511627776 metadata values"):
        load_tokenizer(tmp_path / "t.gguf")
