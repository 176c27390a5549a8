"""Tokenizers that only transformers can build: SentencePiece files, rarer vocabularies, code of the model's own.

transformers is imported here and nowhere else in this package, and only when such a tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from quire.errors import ConfigError, NotSupportedError
from quire.tokenizer.settings import SPECIAL_TOKEN_NAMES, TokenizerSettings, read_json
from quire.tokenizer.text_stream import TextStream, WindowStream
from quire.tokenizer.tokenizer import FastTokenizer, Tokenizer, check_texts, pair_lengths

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json")


def load_with_transformers(
    folder: Path, settings: TokenizerSettings, *, use_fast: bool = True, trust_remote_code: bool = False
) -> Tokenizer:
    """Load a folder through `AutoTokenizer`; ConfigError says what transformers could not read.

    Where transformers itself uses the `tokenizers` package, only that backend is kept.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"the tokenizer in {folder} needs transformers: pip install transformers"
        ) from error
    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), use_fast=use_fast, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ConfigError(_why_not(folder, settings, error)) from error
    return wrap(loaded, settings)


def _why_not(folder: Path, settings: TokenizerSettings, error: Exception) -> str:
    """What to tell the user of a folder that transformers cannot load either."""
    if settings.has_remote_code and "trust_remote_code" in str(error):
        return (
            f"the tokenizer in {folder} brings code of its own, {_code_file(folder)}, which runs only with "
            "--trust-remote-code (trust_remote_code=True)"
        )
    if not settings.has_remote_code and not any(next(folder.glob(name), None) for name in _VOCABULARIES):
        return (
            f"{folder} holds no tokenizer (no tokenizer.json, tokenizer.model, or vocab.json with merges.txt): "
            "give its folder or hub id as the tokenizer, or set skip_tokenizer_init"
        )
    return f"transformers cannot load the tokenizer in {folder}: {' '.join(str(error).split())}"


def _code_file(folder: Path) -> str:
    """The file that tokenizer_config.json wants to run."""
    references = read_json(folder / "tokenizer_config.json")["auto_map"]
    if isinstance(references, dict):
        references = references.get("AutoTokenizer")
    named = [str(name) for name in (references if isinstance(references, list) else [references]) if name]
    return " or ".join(dict.fromkeys(f"{name.rpartition('--')[2].split('.')[0]}.py" for name in named))


def wrap(loaded: Any, settings: TokenizerSettings) -> Tokenizer:
    """The Quire tokenizer of a transformers tokenizer; its special tokens replace those of `settings`."""
    settings = _with_special_tokens(settings, loaded)
    backend = getattr(loaded, "backend_tokenizer", None)
    return TransformersTokenizer(loaded, settings) if backend is None else FastTokenizer(backend, settings)


def _with_special_tokens(settings: TokenizerSettings, loaded: Any) -> TokenizerSettings:
    named = {name: getattr(loaded, name, None) for name in SPECIAL_TOKEN_NAMES}
    return replace(settings, special_tokens={name: str(token) for name, token in named.items() if token})


class TransformersTokenizer(Tokenizer):
    """Tokenizer over a transformers tokenizer written in Python. Slow; correct where nothing else is."""

    def __init__(self, loaded: Any, settings: TokenizerSettings) -> None:
        super().__init__(settings)
        self._loaded = loaded

    def encode(self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt") -> list[int]:
        """See `Tokenizer.encode`."""
        check_texts([text], parameter)
        return list(self._loaded.encode(text, add_special_tokens=add_special_tokens))

    def encode_pair(
        self, first: str, second: str, max_tokens: int | None = None, *, parameter: str = "prompt"
    ) -> tuple[list[int], list[int]]:
        """See `Tokenizer.encode_pair`."""
        check_texts([first, second], parameter)
        found = self._loaded(first, second, return_token_type_ids=True)
        if max_tokens is not None and len(found["input_ids"]) > max_tokens:
            a, b = (len(self._loaded.encode(text, add_special_tokens=False)) for text in (first, second))
            pair_lengths(a, b, max_tokens - (len(found["input_ids"]) - a - b))  # may refuse
            found = self._loaded(
                first, second, truncation="longest_first", max_length=max_tokens, return_token_type_ids=True
            )
        ids = list(found["input_ids"])
        return ids, list(found["token_type_ids"]) if self.has_segments else [0] * len(ids)

    def encode_spans(
        self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt"
    ) -> list[tuple[int, int, int]]:
        """See `Tokenizer.encode_spans`; Python tokenizers keep no places."""
        raise NotSupportedError(
            "this model's tokenizer does not say where in a text its tokens are", parameter=parameter
        )

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True, *, parameter: str = "prompt"
    ) -> list[list[int]]:
        """See `Tokenizer.encode_batch`; one after the other."""
        return [self.encode(text, add_special_tokens, parameter=parameter) for text in texts]

    def decode(
        self,
        token_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """See `Tokenizer.decode`."""
        known = [token_id for token_id in token_ids if 0 <= token_id < self.vocab_size]
        text = self._loaded.decode(
            known,
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        return str(text)

    def make_stream(
        self,
        context: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> TextStream:
        """See `Tokenizer.make_stream`."""
        decode = partial(
            self.decode,
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        return WindowStream(decode, context)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self.decode([token_id], skip_special_tokens=False).encode()

    def id_to_token(self, token_id: int) -> str | None:
        """See `Tokenizer.id_to_token`."""
        token: str | None = self._loaded.convert_ids_to_tokens(token_id) if token_id >= 0 else None
        return token

    def token_to_id(self, token: str) -> int | None:
        """See `Tokenizer.token_to_id`."""
        return self._vocab.get(token)

    @cached_property
    def _vocab(self) -> dict[str, int]:
        return dict(self._loaded.get_vocab())

    def get_vocab(self) -> dict[str, int]:
        """See `Tokenizer.get_vocab`."""
        return dict(self._vocab)

    @cached_property
    def all_special_ids(self) -> frozenset[int]:
        """See `Tokenizer.all_special_ids`."""
        return frozenset(self._loaded.all_special_ids)
