"""What one token contributes to text: bytes that join their neighbours, or finished text. Tables of both, by token id.

Only the decoders whose tokens contribute independently of each other are covered (byte-level BPE;
SentencePiece with
byte fallback). For any other decoder `make_piece_rule` returns None and the caller decodes through a window
instead.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

Piece = bytes | str
"""Bytes are decoded together with the bytes around them; a str is complete text and ends a run of bytes."""

_MAX_TOKEN_ID = 2**32 - 1


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: one U+FFFD for each undecodable byte, as the SentencePiece library does."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("quire.replace_each_byte", _replace_each_byte)


@dataclass(frozen=True)
class PieceRule:
    """How a vocabulary's strings become text.

    `to_piece` maps a vocabulary string; `errors` is the codec error handler for byte runs; `num_strip_start`
    is how
    many leading spaces the whole text loses (the space that SentencePiece puts before the first word).
    """

    to_piece: Callable[[str], Piece]
    errors: str
    num_strip_start: int = 0


@cache
def byte_level_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE vocabularies (GPT-2, Radford et al. 2019)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def byte_level_piece(token: str) -> bytes:
    """Bytes of a byte-level token; a token with any character outside the alphabet stands for its own
    text.
    """
    alphabet = byte_level_alphabet()
    try:
        return bytes([alphabet[char] for char in token])
    except KeyError:
        return token.encode()


def _fallback_byte(token: str) -> bytes | None:
    """The byte of a `<0xE4>` token, or None for any other token."""
    if len(token) != 6 or not token.startswith("<0x") or token[5] != ">":
        return None
    try:
        return bytes.fromhex(token[3:5])
    except ValueError:
        return None


def _sentencepiece_rule(replacements: list[tuple[str, str]], num_strip_start: int) -> PieceRule:
    def to_piece(token: str) -> Piece:
        for old, new in replacements:
            token = token.replace(old, new)
        return _fallback_byte(token) or token

    return PieceRule(to_piece, "quire.replace_each_byte", num_strip_start)


def _parse_sequence(decoders: list[dict[str, Any]]) -> PieceRule | None:
    """Recognise `Replace* ByteFallback Fuse Strip?`, the decoder of converted SentencePiece models."""
    replacements: list[tuple[str, str]] = []
    rest = list(decoders)
    while rest and rest[0]["type"] == "Replace":
        step = rest.pop(0)
        if "String" not in step["pattern"]:
            return None
        replacements.append((step["pattern"]["String"], step["content"]))
    if [step["type"] for step in rest[:2]] != ["ByteFallback", "Fuse"]:
        return None
    return _parse_strip(replacements, rest[2:])


def _parse_strip(replacements: list[tuple[str, str]], rest: list[dict[str, Any]]) -> PieceRule | None:
    if not rest:
        return _sentencepiece_rule(replacements, 0)
    strip = rest[0]
    is_plain = len(rest) == 1 and strip["type"] == "Strip" and strip["content"] == " " and strip["stop"] == 0
    return _sentencepiece_rule(replacements, strip["start"]) if is_plain else None


def make_piece_rule(decoder: Any) -> PieceRule | None:
    """The rule of a `tokenizers` decoder, or None when its tokens do not contribute independently."""
    if decoder is None:
        return None
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return PieceRule(byte_level_piece, "replace")
    return _parse_sequence(steps)


class PieceTable(dict[int, Piece]):
    """Token id -> piece, filled on first use; ids in `skipped` and ids without a token contribute nothing."""

    def __init__(
        self, id_to_token: Callable[[int], str | None], rule: PieceRule, skipped: frozenset[int] = frozenset()
    ) -> None:
        super().__init__({token_id: b"" for token_id in skipped})
        self._id_to_token = id_to_token
        self._to_piece = rule.to_piece

    def __missing__(self, token_id: int) -> Piece:
        token = self._id_to_token(token_id) if 0 <= token_id <= _MAX_TOKEN_ID else None
        if token is None:
            return b""
        piece = self[token_id] = self._to_piece(token)
        return piece
