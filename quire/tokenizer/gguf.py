"""The tokenizer that a GGUF file carries, rebuilt for the `tokenizers` package without any other file.

Its model `llama` is SentencePiece's BPE with scores; `bert` is WordPiece; `gpt2` is byte-level BPE with merges, whose text is cut
first as the name in `tokenizer.ggml.pre` says. The cuts are what the original tokenizers do, so that token ids are theirs. Where
the file holds a whole tokenizer.json, that is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from quire.errors import ConfigError, ModelLoadError, describe
from quire.loader.gguf.header import Header, read_header
from quire.tokenizer.byte_bpe import add_bos_and_eos
from quire.tokenizer.gguf_cuts import Cuts, cuts_named
from quire.tokenizer.sentencepiece_bpe import Piece, SentencePieceModel, build_sentencepiece_bpe
from quire.tokenizer.settings import TokenizerSettings
from quire.tokenizer.tokenizer import FastTokenizer
from quire.tokenizer.tokenizer import Tokenizer as QuireTokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "cls_token": "cls_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""The format's own spelling."""
_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
"""What begins a word's first piece in the file; all others begin with ## in BERT's own vocabulary."""
_BERT_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
"""Where a `bert` tokenizer names none."""
_SENTENCEPIECE_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
"""Where a `llama` tokenizer names none."""


def load_gguf_tokenizer(path: Path) -> QuireTokenizer:
    """The tokenizer of a GGUF file. Raises ConfigError where the file has none that is known, ModelLoadError if it is damaged."""
    header = read_header(path)
    whole = header.values.get("tokenizer.huggingface.json")
    if isinstance(whole, str):
        return _from_tokenizer_json(header, whole)
    model = header.values.get("tokenizer.ggml.model")
    if model not in ("llama", "gpt2", "bert"):
        raise ConfigError(
            f"{path}: tokenizer.ggml.model {describe(model)} is not supported (llama, gpt2 and bert are): "
            "give the original's folder or hub id as the tokenizer"
        )
    tokens = _required(header, "tokens", str)
    types = header.array("tokenizer.ggml.token_type", int) or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise header.wrong("tokenizer.ggml.token_type", f"an array of {len(tokens)} numbers", len(types))
    settings = _settings(header, dict(enumerate(tokens)).get, is_sentencepiece=model == "llama")
    try:
        if model == "bert":
            return _word_pieces(header, tokens, types, settings)
        if model == "llama":
            backend = _sentencepiece(header, tokens, types, settings)
        else:
            backend, settings = _byte_bpe(header, tokens, types, settings)
    except Exception as error:  # the package raises plain Exception
        if isinstance(error, ConfigError | ModelLoadError):
            raise
        raise ConfigError(f"{path}: its tokenizer cannot be built: {error}") from error
    add_bos_and_eos(backend, settings)
    return FastTokenizer(backend, settings)


def _from_tokenizer_json(header: Header, whole: str) -> QuireTokenizer:
    try:
        backend = Tokenizer.from_str(whole)
    except Exception as error:  # the package raises plain Exception
        raise ConfigError(f"{header.path}: tokenizer.huggingface.json cannot be read: {error}") from error
    return FastTokenizer(backend, _settings(header, backend.id_to_token, is_sentencepiece=False))


def _required(header: Header, name: str, kind: type) -> list:
    values = header.array(f"tokenizer.ggml.{name}", kind)
    if not values:
        raise ConfigError(f"{header.path}: tokenizer.ggml.{name} is missing")
    return values


def _settings(
    header: Header, token_of: Callable[[int], str | None], *, is_sentencepiece: bool
) -> TokenizerSettings:
    special = {}
    for name, key in _SPECIAL_IDS.items():
        default = _SENTENCEPIECE_IDS.get(name) if is_sentencepiece else None
        token_id = header.values.get(f"tokenizer.ggml.{key}", default)
        token = token_of(token_id) if isinstance(token_id, int) and token_id >= 0 else None
        if token is not None:
            special[name] = token
    return TokenizerSettings(
        special_tokens=special,
        chat_templates=_chat_templates(header),
        add_bos_token=header.values.get("tokenizer.ggml.add_bos_token", is_sentencepiece or None),
        add_eos_token=header.values.get("tokenizer.ggml.add_eos_token", False) is True,
        add_prefix_space=header.values.get("tokenizer.ggml.add_space_prefix", is_sentencepiece) is True,
    )


def gguf_chat_templates(path: Path) -> dict[str, str]:
    """The chat templates of a GGUF file by name; `default` is the one that has none. Raises ModelLoadError."""
    return _chat_templates(read_header(path))


def _chat_templates(header: Header) -> dict[str, str]:
    key = "tokenizer.chat_template"
    found = {"default": header.values.get(key)}
    found |= {name: header.values.get(f"{key}.{name}") for name in header.array("tokenizer.chat_templates", str) or ()}
    return {name: template for name, template in found.items() if isinstance(template, str)}


def _sentencepiece(header: Header, tokens: list[str], types: list[int], settings: TokenizerSettings) -> Tokenizer:
    scores = _required(header, "scores", float)
    if len(scores) != len(tokens):
        raise header.wrong("tokenizer.ggml.scores", f"an array of {len(tokens)} numbers", len(scores))
    pieces = [Piece(*piece) for piece in zip(tokens, scores, types)]
    return build_sentencepiece_bpe(SentencePieceModel(pieces, bool(settings.add_prefix_space)), settings)


def _word_pieces(header: Header, tokens: list[str], types: list[int], settings: TokenizerSettings) -> QuireTokenizer:
    """BERT's tokenizer; it lowers letters and strips accents where its own vocabulary has no capital letter."""
    pieces = [_word_piece(token, kind) for token, kind in zip(tokens, types)]
    vocabulary = {piece: token_id for token_id, piece in reversed(list(enumerate(pieces)))}
    special = {name: token for name, token in _BERT_TOKENS.items() if token in vocabulary} | settings.special_tokens
    special = {name: token.removeprefix(_WORD_START) for name, token in special.items()}
    missing = [name for name in ("cls_token", "sep_token", "unk_token") if special.get(name) not in vocabulary]
    if missing:
        raise ConfigError(f"{header.path}: its tokenizer has no {', '.join(missing)}")
    backend = Tokenizer(WordPiece(vocabulary, unk_token=special["unk_token"]))
    is_cased = any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    start, end = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.BertProcessing((end, vocabulary[end]), (start, vocabulary[start]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    return FastTokenizer(backend, replace(settings, special_tokens=special))


def _word_piece(token: str, kind: int) -> str:
    if kind == _CONTROL:
        return token
    return token[1:] if token.startswith(_WORD_START) else f"##{token}"


def _byte_bpe(
    header: Header, tokens: list[str], types: list[int], settings: TokenizerSettings
) -> tuple[Tokenizer, TokenizerSettings]:
    name = header.get("tokenizer.ggml.pre", str, "default")
    cuts = cuts_named(name)
    if cuts is None:
        raise ConfigError(
            f"{header.path}: tokenizer.ggml.pre {describe(name)} is not known: "
            "give the original's folder or hub id as the tokenizer"
        )
    vocabulary = {token: token_id for token_id, token in reversed(list(enumerate(tokens)))}
    merges = [_pair(header, merge) for merge in header.array("tokenizer.ggml.merges", str) or ()]
    backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=cuts.ignores_merges))
    if cuts.normalizes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer_of(cuts, bool(settings.add_prefix_space))
    backend.decoder = decoders.ByteLevel()
    for kind in (_CONTROL, _USER_DEFINED):
        added = [token for token, own in zip(tokens, types) if own == kind]
        backend.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False) for token in added])
    if settings.add_bos_token is None:
        settings = replace(settings, add_bos_token=cuts.adds_bos)
    return backend, settings


def _pair(header: Header, merge: str) -> tuple[str, str]:
    """Both tokens of a merge; the first has a character at least, which may be the separator itself."""
    at = merge.find(" ", 1)
    if at < 0 or at == len(merge) - 1:
        raise header.wrong("tokenizer.ggml.merges", "pairs of tokens", merge)
    return merge[:at], merge[at + 1 :]


def pre_tokenizer_of(cuts: Cuts, adds_space: bool) -> pre_tokenizers.PreTokenizer:
    """Cuts text, after a space before all of it if `adds_space`, and turns it to the letters that stand for bytes."""
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in cuts.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=adds_space, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_bytes])
