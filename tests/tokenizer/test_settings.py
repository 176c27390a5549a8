"""Special tokens, flags and chat templates, wherever a folder states them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.tokenizer import load_tokenizer
from quire.tokenizer.settings import read_settings
from tests.tokenizer import tiny


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_tokens_as_text_and_as_objects(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "unk_token": None}
    settings = read_settings(write(tmp_path, tokenizer_config=config))
    assert settings.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_special_tokens_map_counts_only_without_added_tokens_decoder(tmp_path: Path) -> None:
    other = {"eos_token": "<other>"}
    folder = write(tmp_path, tokenizer_config={"eos_token": "</s>"}, special_tokens_map=other)
    assert read_settings(folder).special_tokens == {"eos_token": "<other>"}
    write(tmp_path, tokenizer_config={"eos_token": "</s>", "added_tokens_decoder": {}})
    assert read_settings(folder).special_tokens == {"eos_token": "</s>"}


def test_families_have_default_tokens_and_null_means_none(tmp_path: Path) -> None:
    config = {"tokenizer_class": "GPT2TokenizerFast", "bos_token": None}
    settings = read_settings(write(tmp_path, tokenizer_config=config))
    assert settings.family == "GPT2"
    assert settings.special_tokens == {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    assert (
        read_settings(write(tmp_path, tokenizer_config={}, config={"model_type": "qwen3"})).family == "Qwen2"
    )


def test_chat_templates_from_every_place(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    assert read_settings(write(tmp_path, tokenizer_config={"chat_template": "S"})).chat_templates == {
        "default": "S"
    }
    folder = write(tmp_path, tokenizer_config={"chat_template": named})
    assert read_settings(folder).chat_templates == {"default": "D", "tool_use": "T"}
    (tmp_path / "chat_template.jinja").write_text("F")
    assert read_settings(folder).chat_templates == {"default": "F"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert read_settings(folder).chat_templates == {"default": "F", "rag": "R"}


def test_added_tokens_in_both_formats(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizer_config={"eos_token": "<e>"}, added_tokens={"<b>": 8, "<e>": 7})
    added = read_settings(folder).added_tokens
    assert list(added) == [7, 8]
    assert added[7].special and not added[7].normalized and not added[8].special and added[8].normalized
    decoder = {"9": {"content": "<x>", "rstrip": True, "special": True, "unknown flag": 1}}
    added = read_settings(write(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})).added_tokens
    assert added[9].rstrip and added[9].special and added[9].content == "<x>"


def test_lengths_and_sides(tmp_path: Path) -> None:
    config = {"model_max_length": 1e30, "truncation_side": "left"}
    settings = read_settings(write(tmp_path, tokenizer_config=config))
    assert (settings.model_max_length, settings.truncation_side) == (None, "left")
    assert read_settings(write(tmp_path, tokenizer_config={"model_max_length": 512})).model_max_length == 512


def test_missing_added_tokens_and_special_flags_reach_the_backend(tmp_path: Path) -> None:
    tiny.byte_level()._backend.save(str(tmp_path / "tokenizer.json"))
    size = tiny.byte_level().vocab_size
    config = {"eos_token": "你好", "additional_special_tokens": ["<call>"], "pad_token": "<pad>"}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=config))
    assert tokenizer.eos_token_id == tiny.byte_level().token_to_id("你好")
    assert tokenizer.encode("a<call>", add_special_tokens=False)[-1] >= size
    special = {tokenizer.id_to_token(token_id) for token_id in tokenizer.all_special_ids}
    assert special == {"<s>", "</s>", "<unk>", "你好", "<call>", "<pad>"}


def test_token_ids_of_the_model_config_are_the_last_resort(tmp_path: Path) -> None:
    tiny.byte_level()._backend.save(str(tmp_path / "tokenizer.json"))
    eos = tiny.byte_level().eos_token_id
    tokenizer = load_tokenizer(write(tmp_path, config={"eos_token_id": eos, "bos_token_id": 10**6}))
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (eos, None)
