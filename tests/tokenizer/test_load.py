"""Loading gives the ids that the reference libraries give, without importing them."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.errors import ConfigError, InvalidRequestError
from quire.tokenizer import Tokenizer, load_tokenizer
from quire.tokenizer.fallback import TransformersTokenizer
from quire.tokenizer.settings import TokenizerSettings
from quire.tokenizer.tokenizer import FastTokenizer
from tests.shared_data import shared, shared_names
from tests.tokenizer import tiny

AWKWARD = [
    "",
    " ",
    "  two  spaces ",
    "\n\n\t x",
    "a\u0301e\u0308",
    "1234567",
    "don't I'LL",
    "😀👩‍👩‍👧",
    "\x00\x7f",
    "<|im_start|>user\nhi",
]


def multilingual() -> list[str]:
    lines = shared("text/udhr_multilingual.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines] + AWKWARD


def gpt2_folder(tmp_path: Path, **config: Any) -> Path:
    folder = tmp_path / "gpt2"
    shutil.copytree(shared("tokenizers/gpt2"), folder)
    folder.chmod(0o755)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | config))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


def mistral_folder(tmp_path: Path, version: str, **config: Any) -> Path:
    folder = tmp_path / version
    folder.mkdir()
    shutil.copy(shared(f"tokenizers/mistral/tokenizer.model.{version}"), folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"} | config))
    return folder


@pytest.mark.parametrize(("vectors", "folder"), [("gpt-2", "gpt2"), ("qwen2", "qwen2")])
def test_published_vectors(vectors: str, folder: str) -> None:
    tokenizer = load_tokenizer(shared(f"tokenizers/{folder}"))
    source = shared(f"tokenizers/gguf_vocab/ggml-vocab-{vectors}.gguf.inp").read_text(encoding="utf-8")
    texts = source.split("\n__ggml_vocab_test__\n")
    lines = shared(f"tokenizers/gguf_vocab/ggml-vocab-{vectors}.gguf.out").read_text().split("\n")
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == [int(number) for number in line.split()], text
        if vectors == "gpt-2":
            assert tokenizer.decode(ids) == text
    assert len(lines) == 47


@pytest.mark.parametrize("sample", shared_names("tokenizers/mistral/samples", "*.tokens_v[13].json"))
def test_published_requests_of_mistral(sample: str, tmp_path: Path) -> None:
    """The texts between control tokens, each encoded alone, as mistral-common does."""
    version = "v1" if "_v1" in sample else "v3"
    tokenizer, num_control = load_tokenizer(mistral_folder(tmp_path, version)), {"v1": 3, "v3": 10}[version]
    folder = shared("tokenizers/mistral/samples")
    ids = json.loads((folder / sample).read_text())["tokens"]
    control = [str(tokenizer.id_to_token(token_id)) for token_id in range(num_control)]
    text = (folder / sample.replace(".tokens", ".text").replace(".json", ".txt")).read_text(encoding="utf-8")
    text = text.replace("<0x0A>", "\n")
    texts = [part.replace("▁", " ").removeprefix(" ") for part in re.split("|".join(map(re.escape, control)), text) if part]
    groups = itertools.groupby(ids, key=lambda token_id: token_id >= num_control)
    expected = [list(group) for is_text, group in groups if is_text]
    assert [tokenizer.encode(part, add_special_tokens=False) for part in texts] == expected
    assert len(expected) >= 4


def check_against(tokenizer: Tokenizer, reference: Any, texts: list[str]) -> None:
    for text in texts:
        for add_special_tokens in (True, False):
            ids = tokenizer.encode(text, add_special_tokens)
            assert ids == reference.encode(text, add_special_tokens=add_special_tokens), text[:60]
        for skip in (True, False):
            decoded = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == decoded
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/qwen2"])
def test_agrees_with_auto_tokenizer(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer, reference = (
        load_tokenizer(shared(name)),
        transformers.AutoTokenizer.from_pretrained(shared(name)),
    )
    check_against(tokenizer, reference, multilingual())
    assert tokenizer.special_tokens == dict(reference.special_tokens_map)
    assert tokenizer.bos_token_id == reference.bos_token_id
    assert tokenizer.eos_token_id == reference.eos_token_id
    assert tokenizer.pad_token_id == reference.pad_token_id
    assert tokenizer.chat_template == reference.chat_template
    assert tokenizer.vocab_size == max(reference.get_vocab().values()) + 1
    assert set(reference.all_special_ids) <= tokenizer.all_special_ids


def test_agrees_with_auto_tokenizer_on_gpt2_with_bos(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = gpt2_folder(tmp_path, add_bos_token=True)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    check_against(tokenizer, reference, multilingual())
    assert tokenizer.encode("hi")[0] == tokenizer.bos_token_id == 50256


def test_agrees_with_transformers_on_gpt_neox() -> None:
    transformers = pytest.importorskip("transformers")
    path = shared("tokenizers/gpt-neox-20b/tokenizer.json")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    check_against(load_tokenizer(path), reference, multilingual())


def sentencepiece_library(folder: Path) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("version", ["v1", "v3"])
def test_agrees_with_the_sentencepiece_library(tmp_path: Path, version: str, legacy: bool) -> None:
    folder = mistral_folder(tmp_path, version, legacy=legacy)
    tokenizer, reference = load_tokenizer(folder), sentencepiece_library(folder)
    assert isinstance(tokenizer, FastTokenizer)
    for text in multilingual():
        if not legacy and text.startswith(" "):
            continue  # such a space is the prefix space, as in transformers
        ids = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text[:60]
        assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.encode("a") == [tokenizer.bos_token_id, *reference.encode("a")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_text_and_ids_agree_with_the_sentencepiece_library(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tokenizer, reference = _mistral_pair(tmp_path_factory)
    text = data.draw(
        st.text(alphabet=st.characters(blacklist_characters="\x00▁", codec="utf-8"), max_size=40)
    )
    if "<" not in text:
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text)
    ids = data.draw(st.lists(st.integers(3, 31_999), max_size=8) | st.lists(st.integers(3, 258), max_size=8))
    if not ids or ids[0] != 3 + ord(" "):  # the library does not strip a space that came as a byte
        assert tokenizer.decode(ids) == reference.decode(ids)


_pairs: list[tuple[Tokenizer, Any]] = []


def _mistral_pair(factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    if not _pairs:
        folder = mistral_folder(factory.mktemp("mistral"), "v1", legacy=True)
        _pairs.append((load_tokenizer(folder), sentencepiece_library(folder)))
    return _pairs[0]


def test_loading_imports_neither_torch_nor_transformers() -> None:
    folder = shared("models/stories260K")
    code = (
        "import sys; from quire.tokenizer import load_tokenizer\n"
        f"load_tokenizer({str(folder)!r}).encode('a')\n"
        "assert not {'torch', 'transformers', 'sentencepiece'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_python_tokenizers_come_from_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.ByT5Tokenizer()
    reference.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, TransformersTokenizer)
    for text in ("Hello", "Grüße 你好 😀"):
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == text
        stream = tokenizer.make_stream()
        assert "".join(stream.push([token_id]) for token_id in ids) + stream.flush() == text
    assert tokenizer.eos_token_id == reference.eos_token_id
    with pytest.raises(InvalidRequestError, match="prompt must be valid Unicode"):
        tokenizer.encode("\ud800")
    with pytest.raises(InvalidRequestError, match="where in a text"):
        tokenizer.encode_spans("a")


def test_mode_hf_gives_the_same_ids() -> None:
    pytest.importorskip("transformers")
    folder = shared("models/stories260K")
    direct, through = load_tokenizer(folder), load_tokenizer(folder, tokenizer_mode="hf")
    for text in multilingual():
        assert through.encode(text) == direct.encode(text)


def test_remote_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "EvilTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "evil"}')
    with pytest.raises(ConfigError, match=r"evil\.py, which runs only with --trust-remote-code"):
        load_tokenizer(tmp_path)


def test_wrong_folders_and_modes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer_mode must be one of auto, hf, slow, got 'fast'"):
        load_tokenizer(tmp_path, tokenizer_mode="fast")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="must hold a JSON object, got list"):
        load_tokenizer(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff")
    with pytest.raises(ConfigError):
        load_tokenizer(damaged)


@pytest.mark.parametrize("name", sorted(tiny.ALL))
def test_lone_surrogates_and_other_types_are_refused(name: str) -> None:
    tokenizer = tiny.ALL[name]()
    with pytest.raises(
        InvalidRequestError, match="suffix must be valid Unicode, got a lone surrogate"
    ) as caught:
        tokenizer.encode("ab\ud83d", parameter="suffix")
    assert caught.value.parameter == "suffix"
    with pytest.raises(InvalidRequestError, match="prompt must be text, got 3"):
        tokenizer.encode(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError):
        tokenizer.encode_batch(["fine", "\udc00"])
    assert tokenizer.encode("the a")


@given(st.sampled_from(sorted(tiny.EXACT)), st.lists(st.integers(0, 300), max_size=20), st.booleans())
def test_decode_agrees_with_the_tokenizers_package(name: str, ids: list[int], skip: bool) -> None:
    """Equal, except that byte tokens keep their valid characters beside invalid bytes."""
    tokenizer = tiny.EXACT[name]()
    expected = tokenizer._backend.decode(ids, skip_special_tokens=skip)
    if name == "byte_level" or "\ufffd" not in expected:
        assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_single_tokens() -> None:
    tokenizer = tiny.sentencepiece()
    the = tokenizer.token_to_id("▁the")
    assert the is not None
    assert tokenizer.decode_token(the) == " the"
    assert tokenizer.token_bytes(1 + 0xE4) == b"\xe4"
    assert tokenizer.decode_token(1 + 0xE4) == "\ufffd"
    assert tokenizer.id_to_token(the) == "▁the"
    assert tokenizer.id_to_token(10**6) is None and tokenizer.id_to_token(-1) is None
    assert tokenizer.token_bytes(10**6) == b"" == tokenizer.token_bytes(-1) == tokenizer.token_bytes(2**70)
    assert tokenizer.max_chars_per_token == len("<extra>")
    assert tokenizer.vocab_size == max(tokenizer.get_vocab().values()) + 1


def test_skipped_tokens_are_those_marked_special() -> None:
    tokenizer = tiny.byte_level()
    names = {tokenizer.id_to_token(token_id) for token_id in tokenizer.all_special_ids}
    assert names == {"<s>", "</s>", "<unk>"}


def test_the_extent_of_a_vocabulary_with_a_gap():
    model = tokenizers.models.WordLevel({"a": 0, "word": 3, "far": 1000}, unk_token="a")
    tokenizer = FastTokenizer(tokenizers.Tokenizer(model), TokenizerSettings())
    assert (tokenizer.vocab_size, tokenizer.max_chars_per_token) == (1001, len("word"))


def test_spans_are_places_in_the_text() -> None:
    text = "the <s> ab你"
    spans = tiny.byte_level().encode_spans(text)
    assert [token_id for token_id, _, _ in spans] == tiny.byte_level().encode(text)
    pieces = [text[start:stop] for _, start, stop in spans]
    assert pieces == ["the", " ", "<s>", " ", "ab", "你", "你", "你"]
    with pytest.raises(InvalidRequestError, match="inputs"):
        tiny.byte_level().encode_spans("\ud800", parameter="inputs")
