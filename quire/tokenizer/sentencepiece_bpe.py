"""Builds Llama-style tokenizers from a SentencePiece `tokenizer.model`, without the sentencepiece package.

Only what those models use: BPE with byte fallback and no text normalisation. `read_model` raises Unsupported
for
anything else, which the fallback then handles. Field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from quire.tokenizer.settings import TokenizerSettings

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE_MODEL = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SPACE = "▁"


class Unsupported(Exception):
    """The file is not a SentencePiece model of the kind that this module builds."""


@dataclass(frozen=True)
class Piece:
    """One token: its text, its score (higher is joined earlier), its kind."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces by id, and whether a space is put before the text."""

    pieces: list[Piece]
    adds_prefix_space: bool


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer message; fixed-width values stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise Unsupported(f"wire type {wire_type}")
        if at + size > len(data):
            raise Unsupported("the file is cut short")
        yield number, data[at : at + size]
        at += size


def _parse_piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, bytes(4)), fields.get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise Unsupported("a piece has fields of the wrong type")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def read_model(path: Path) -> SentencePieceModel:
    """Parse a `tokenizer.model`; raises Unsupported where the build would not be exact."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_parse_piece(value))
            elif number == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif number == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except (IndexError, UnicodeDecodeError, struct.error) as error:
        raise Unsupported(f"not a SentencePiece model: {error}") from error
    _check_supported(trainer, normalizer)
    return SentencePieceModel(pieces, bool(normalizer.get(3, 1)))


def _check_supported(trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]) -> None:
    if trainer.get(3, 1) != _BPE_MODEL or not trainer.get(35, 0):
        raise Unsupported("not BPE with byte fallback")
    if normalizer.get(2, b"") or normalizer.get(4, 1) or trainer.get(24, 0):
        raise Unsupported("it normalises text")


def _merges(pieces: list[Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first: the order in which SentencePiece joins
    them.
    """
    merges = []
    for piece in pieces:
        if piece.kind not in (_NORMAL, _UNUSED):
            continue
        text = piece.text
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        found = [(left, right) for left, right in splits if left in ids and right in ids]
        found.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(-piece.score, pair) for pair in found]
    merges.sort(key=lambda merge: merge[0])
    return [pair for _, pair in merges]


def build_sentencepiece_bpe(model: SentencePieceModel, settings: TokenizerSettings) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a model, with its control and user-defined pieces as added tokens.

    A space goes before the text; with the `legacy` setting, before every stretch between special tokens too.
    """
    pieces = model.pieces
    ids = {piece.text: token_id for token_id, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.kind == _UNKNOWN), None)
    backend = Tokenizer(BPE(ids, _merges(pieces, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    stated = settings.add_prefix_space
    adds_space = model.adds_prefix_space if stated is None else stated
    _set_spaces(backend, adds_space, settings.legacy)
    for kinds, is_special in (((_UNKNOWN, _CONTROL), True), ((_USER_DEFINED,), False)):
        added = [piece.text for piece in pieces if piece.kind in kinds]
        backend.add_tokens([AddedToken(text, special=is_special, normalized=False) for text in added])
    return backend


def _set_spaces(backend: Tokenizer, adds_space: bool, is_legacy: bool) -> None:
    if is_legacy:
        prepend = [normalizers.Prepend(_SPACE)] if adds_space else []
        backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    else:
        scheme = "first" if adds_space else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", left=1)] if adds_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
