"""Token ids in, settled text out: the two incremental decoders. Stop strings and hold-back are in `detokenize.py`.

Both keep back bytes that may still become a character, so U+FFFD leaves only when nothing can repair it any
more.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from quire.tokenizer.pieces import Piece, PieceRule

_MAX_UTF8_BYTES = 4
_NUM_CONTEXT_TOKENS = 6
_MAX_UNSETTLED_TOKENS = 16


class TextStream(Protocol):
    """Decoder of one sequence. The text of all calls, joined, is the decoded text of all tokens pushed."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens settle; may be empty."""
        ...

    def flush(self) -> str:
        """What is left: incomplete bytes as U+FFFD. Call it once, at the end."""
        ...


class PieceStream:
    """Exact and O(1) per token: joins pieces and decodes UTF-8 across token borders.

    With `context` the stream continues that text: bytes left open at its end are completed by the first
    tokens
    pushed, and the leading space is stripped only if the context shows no text.
    """

    def __init__(self, pieces: Mapping[int, Piece], rule: PieceRule, context: Sequence[int] = ()) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")(rule.errors)
        self._num_strip = rule.num_strip_start
        self._resume(context)

    def _resume(self, context: Sequence[int]) -> None:
        """Take over the open bytes of the context. UTF-8 synchronises itself, so its last bytes are
        enough.
        """
        tail = b""
        for token_id in reversed(context):
            piece = self._pieces[token_id]
            if piece:
                self._num_strip = 0
            if isinstance(piece, str) or len(tail) >= _MAX_UTF8_BYTES:
                break
            tail = piece + tail
        self._utf8.decode(tail)

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens settle; may be empty."""
        text = self._push_pieces([self._pieces[token_id] for token_id in token_ids])
        return self._strip(text) if self._num_strip else text

    def _push_pieces(self, pieces: list[Piece]) -> str:
        try:
            return self._utf8.decode(b"".join(pieces))  # type: ignore[arg-type]
        except TypeError:  # there is finished text among them
            return "".join(map(self._push_piece, pieces))

    def _push_piece(self, piece: Piece) -> str:
        if isinstance(piece, bytes):
            return self._utf8.decode(piece)
        return self._utf8.decode(b"", True) + piece

    def _strip(self, text: str) -> str:
        while self._num_strip and text:
            self._num_strip = self._num_strip - 1 if text[0] == " " else 0
            text = text.removeprefix(" ") if text[0] == " " else text
        return text

    def flush(self) -> str:
        """Incomplete bytes as U+FFFD."""
        return self._strip(self._utf8.decode(b"", True))


class WindowStream:
    """For every other decoder: decodes a short window again and emits what it grew by.

    The window always starts with tokens whose text is out already, so rules that look at neighbours (spaces
    between
    words, clean-up) see them. A trailing U+FFFD waits for more tokens, but not for more than 16.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = self._visible_tail(context)
        self._num_shown = len(self._window)

    def _visible_tail(self, context: Sequence[int]) -> list[int]:
        """The end of the context, long enough to show text if any of it does."""
        size = _NUM_CONTEXT_TOKENS
        while size < len(context) and not self._decode(list(context[-size:])):
            size *= 2
        return list(context[-size:])

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens settle; may be empty."""
        return "".join(self._push_token(token_id) for token_id in token_ids)

    def _push_token(self, token_id: int) -> str:
        self._window.append(token_id)
        new = self._new_text()
        num_unsettled = len(self._window) - self._num_shown
        if not new or (new.endswith("\ufffd") and num_unsettled <= _MAX_UNSETTLED_TOKENS):
            return ""
        self._window = self._window[self._num_shown :]
        self._num_shown = len(self._window)
        return new

    def _new_text(self) -> str:
        shown = self._decode(self._window[: self._num_shown])
        return self._decode(self._window)[len(shown) :]

    def flush(self) -> str:
        """The text still waiting."""
        return self._new_text()
