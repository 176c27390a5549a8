"""Finds out what a folder holds and builds its tokenizer, without transformers wherever that is exact."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import tokenizers

from quire.errors import ConfigError
from quire.loader.configuration import is_gguf
from quire.loader.hub import resolve_tokenizer
from quire.log import get_logger, warn_once
from quire.tokenizer.byte_bpe import FAMILIES, add_bos_and_eos, build_byte_bpe
from quire.tokenizer.fallback import load_with_transformers
from quire.tokenizer.gguf import load_gguf_tokenizer
from quire.tokenizer.sentencepiece_bpe import Unsupported, build_sentencepiece_bpe, read_model
from quire.tokenizer.settings import (
    AddedToken,
    TokenizerSettings,
    default_special_tokens,
    read_json,
    read_settings,
)
from quire.tokenizer.tokenizer import FastTokenizer, Tokenizer

_logger = get_logger(__name__)

TOKENIZER_MODES = ("auto", "hf", "slow")
"""`auto`: directly, else through transformers; `hf`: always through transformers; `slow`: its Python
tokenizers.
"""


def load_tokenizer(
    path: str | Path,
    *,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
) -> Tokenizer:
    """Load the tokenizer of a model folder, of a GGUF file, or of a hub name at `revision`.

    `tokenizer.json` is read by the `tokenizers` package, GPT-2 and Qwen2 folders with `vocab.json` and
    `merges.txt`
    are built directly, so is a Llama-style `tokenizer.model`; everything else goes through transformers. Code
    that comes with a model runs only with
    `trust_remote_code`. Raises ConfigError when the folder holds no tokenizer or one that cannot be read,
    ModelLoadError or HubError when there is no such folder or hub name.
    """
    if tokenizer_mode not in TOKENIZER_MODES:
        allowed = ", ".join(TOKENIZER_MODES)
        raise ConfigError(f"tokenizer_mode must be one of {allowed}, got {tokenizer_mode!r}")
    folder = _resolve_folder(Path(path), revision, download_dir)
    if is_gguf(folder):
        return load_gguf_tokenizer(folder)
    settings = read_settings(folder)
    direct = _load_directly(folder, settings) if tokenizer_mode == "auto" else None
    if direct is not None:
        return direct
    return load_with_transformers(
        folder, settings, use_fast=tokenizer_mode != "slow", trust_remote_code=trust_remote_code
    )


def _resolve_folder(path: Path, revision: str | None, download_dir: str | None) -> Path:
    if path.is_file() and path.name == "tokenizer.json":
        return path.parent
    return Path(resolve_tokenizer(str(path), revision, download_dir))


def _load_directly(folder: Path, settings: TokenizerSettings) -> Tokenizer | None:
    """The tokenizer built without transformers, or None when that would not be exact."""
    if (folder / "tokenizer.json").is_file():
        return _from_tokenizer_json(folder, settings)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocab_and_merges(folder, settings)
    if (folder / "tokenizer.model").is_file() and settings.family in (None, "Llama"):
        return _from_sentencepiece(folder, settings)
    return None


def _from_tokenizer_json(folder: Path, settings: TokenizerSettings) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise ConfigError(f"{path} cannot be read: {error}") from error
    settings = _with_tokens_of_config(backend, folder, settings)
    _add_tokens(backend, settings)
    return FastTokenizer(backend, settings)


def _from_vocab_and_merges(folder: Path, settings: TokenizerSettings) -> Tokenizer | None:
    family = settings.family
    if family is None and "Ġ" in read_json(folder / "vocab.json"):
        warn_once(_logger, f"{folder} does not say which tokenizer it holds; taking it for GPT-2's")
        family = "GPT2"
    if family not in FAMILIES:
        return None
    backend = build_byte_bpe(folder, family, settings)
    settings = _with_tokens_of_config(backend, folder, settings)
    _add_tokens(backend, settings)
    add_bos_and_eos(backend, settings)
    return FastTokenizer(backend, settings)


def _from_sentencepiece(folder: Path, settings: TokenizerSettings) -> Tokenizer | None:
    try:
        model = read_model(folder / "tokenizer.model")
    except Unsupported as error:
        _logger.info("%s goes to transformers: %s", folder / "tokenizer.model", error)
        return None
    backend = build_sentencepiece_bpe(model, settings)
    if not settings.special_tokens:
        settings = replace(settings, special_tokens=default_special_tokens("Llama"))
    _add_tokens(backend, settings)
    add_bos_and_eos(backend, replace(settings, add_bos_token=settings.add_bos_token is not False))
    return FastTokenizer(backend, settings)


def _with_tokens_of_config(
    backend: tokenizers.Tokenizer, folder: Path, settings: TokenizerSettings
) -> TokenizerSettings:
    """Where no tokenizer file names special tokens at all, take the ids of the model's `config.json`."""
    if settings.special_tokens or (folder / "tokenizer_config.json").is_file():
        return settings
    config = read_json(folder / "config.json")
    found = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = config.get(f"{name}_id")
        token = backend.id_to_token(token_id) if isinstance(token_id, int) and token_id >= 0 else None
        if token is not None:
            found[name] = token
    return replace(settings, special_tokens=found)


def _add_tokens(backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """Give the backend every added and special token that its own file lacks, in id order."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    missing = [token for token in settings.added_tokens.values() if token.content not in known]
    backend.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in missing])
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    special = dict.fromkeys((*settings.special_tokens.values(), *settings.extra_special_tokens))
    plain = [token for token in special if token not in known or not known[token].special]
    backend.add_special_tokens([_as_special(known.get(token), token) for token in plain])


def _as_special(known: tokenizers.AddedToken | None, content: str) -> tokenizers.AddedToken:
    """An added token with the flags it has, marked special."""
    if known is None:
        return tokenizers.AddedToken(**asdict(AddedToken(content)))
    flags = {name: getattr(known, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return tokenizers.AddedToken(content, special=True, **flags)
