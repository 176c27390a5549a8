"""The interface of a tokenizer, and its implementation over the `tokenizers` package. Loading is in
`load.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, partial

import tokenizers

from quire.errors import InvalidRequestError, describe
from quire.tokenizer.pieces import PieceTable, make_piece_rule
from quire.tokenizer.settings import TokenizerSettings
from quire.tokenizer.text_stream import PieceStream, TextStream, WindowStream

# What English word-piece models lose when their words are joined with spaces (clean_up_tokenization_spaces).
_CLEAN_UPS = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


def clean_up_spaces(text: str) -> str:
    """Remove the spaces that joining word pieces leaves before English punctuation and contractions."""
    for before, after in _CLEAN_UPS:
        text = text.replace(before, after)
    return text


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def pair_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens two texts keep of `room`, as `longest_first` of the `tokenizers` package divides it. InvalidRequestError
    for less than one each.
    """
    if room < 2:
        raise InvalidRequestError(
            f"truncate_prompt_tokens must leave a token to each of two texts, but leaves {max(0, room)} to both",
            parameter="truncate_prompt_tokens",
        )
    short = min(first, second, room // 2)
    if first <= second:
        return short, min(second, room - short)
    return min(first, room - short), short


class Tokenizer(ABC):
    """Text to token ids and back. Safe to use from several threads once loaded."""

    def __init__(self, settings: TokenizerSettings) -> None:
        self.settings = settings

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt") -> list[int]:
        """Token ids of a text.

        `add_special_tokens` adds what the model expects around a plain prompt (BOS, usually). The output of
        `render_chat` has them already: encode it with False. Raises InvalidRequestError naming `parameter`
        when the
        text holds a lone surrogate, which no encoding of it could carry.
        """

    @abstractmethod
    def encode_pair(
        self, first: str, second: str, max_tokens: int | None = None, *, parameter: str = "prompt"
    ) -> tuple[list[int], list[int]]:
        """(token ids of two texts in one, with what the model expects around them; which text each belongs to, 0 or 1).

        Of more than `max_tokens` the end of the longer text is cut off, and once they are alike the ends of both (the starts,
        where that is the tokenizer's side). Raises InvalidRequestError as `encode` does, and where both have no room.
        """

    @property
    def has_segments(self) -> bool:
        """Whether the model is meant to hear which text a token belongs to; else all segments are 0."""
        names = self.settings.model_input_names
        return names is None or "token_type_ids" in names

    @abstractmethod
    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True, *, parameter: str = "prompt"
    ) -> list[list[int]]:
        """`encode` of many texts, in parallel where the implementation can."""

    @abstractmethod
    def encode_spans(
        self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt"
    ) -> list[tuple[int, int, int]]:
        """`encode` with each id's place: (token id, start, stop), characters of the text; what was added has 0, 0.

        Raises InvalidRequestError also where the implementation does not know the places.
        """

    @abstractmethod
    def decode(
        self,
        token_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Text of token ids; ids outside the vocabulary contribute nothing, incomplete bytes become U+FFFD.

        `spaces_between_special_tokens` matters only for Python tokenizers that write spaces between added
        tokens.
        """

    @abstractmethod
    def make_stream(
        self,
        context: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> TextStream:
        """A decoder for tokens that arrive one by one after `context` (the prompt)."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token on its own; possibly a fragment of a character, empty for an unknown
        id.
        """

    @abstractmethod
    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own string for an id (for example `Ġthe`), or None."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """The id of a vocabulary string, or None."""

    @abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Vocabulary string -> id, added tokens included. A fresh dict, costly for large vocabularies."""

    @property
    @abstractmethod
    def all_special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""

    def decode_token(self, token_id: int) -> str:
        """Text of one token on its own, with its leading space; fragments of characters show as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    @cached_property
    def _vocab_extent(self) -> tuple[int, int]:
        """(largest id + 1, length of the longest vocabulary string)."""
        vocab = self.get_vocab()
        return max(vocab.values(), default=-1) + 1, max(map(len, vocab), default=1)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id. The model's own vocabulary may be padded beyond it."""
        return self._vocab_extent[0]

    @property
    def max_chars_per_token(self) -> int:
        """Length of the longest vocabulary string: `len(text)` above this times the token limit is surely
        too long.
        """
        return self._vocab_extent[1]

    def _special_id(self, name: str) -> int | None:
        token = self.settings.special_tokens.get(name)
        return None if token is None else self.token_to_id(token)

    @cached_property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text, or None."""
        return self._special_id("bos_token")

    @cached_property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text, or None."""
        return self._special_id("eos_token")

    @cached_property
    def pad_token_id(self) -> int | None:
        """Id of the padding token, or None."""
        return self._special_id("pad_token")

    @cached_property
    def unk_token_id(self) -> int | None:
        """Id of the token for unknown text, or None."""
        return self._special_id("unk_token")

    @property
    def special_tokens(self) -> dict[str, str]:
        """Named special tokens (`bos_token`, `eos_token`, ...) as chat templates see them."""
        return self.settings.special_tokens

    @property
    def chat_template(self) -> str | None:
        """The model's default chat template, or None."""
        return self.settings.chat_templates.get("default")

    @property
    def chat_templates(self) -> dict[str, str]:
        """All named chat templates; `default` is the one used when none is asked for."""
        return self.settings.chat_templates

    @property
    def truncation_side(self) -> str:
        """Which end a text that is too long loses: `left` or `right`."""
        return self.settings.truncation_side

    @property
    def model_max_length(self) -> int | None:
        """Longest sequence that the tokenizer's configuration states, or None."""
        return self.settings.model_max_length


class FastTokenizer(Tokenizer):
    """Tokenizer over a `tokenizers.Tokenizer`, whose encoding runs in Rust without the GIL."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        super().__init__(settings)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = settings.split_special_tokens
        self._backend = backend
        self._cleans_up = settings.clean_up_tokenization_spaces and not isinstance(
            backend.model, tokenizers.models.BPE
        )
        self._rule = None if self._cleans_up else make_piece_rule(backend.decoder)
        if self._rule is not None:
            self._all_pieces = PieceTable(backend.id_to_token, self._rule)
            self._text_pieces = PieceTable(backend.id_to_token, self._rule, self.all_special_ids)

    def encode(self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt") -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError:
            check_texts([text], parameter)
            raise

    def encode_pair(
        self, first: str, second: str, max_tokens: int | None = None, *, parameter: str = "prompt"
    ) -> tuple[list[int], list[int]]:
        """See `Tokenizer.encode_pair`."""
        check_texts([first, second], parameter)
        found = self._backend.encode(first, second)
        if max_tokens is not None and len(found.ids) > max_tokens:
            a, b = (self._backend.encode(text, add_special_tokens=False) for text in (first, second))
            num_added = len(found.ids) - len(a.ids) - len(b.ids)
            lengths = pair_lengths(len(a.ids), len(b.ids), max_tokens - num_added)
            for text, length in zip((a, b), lengths, strict=True):
                text.truncate(length, direction=self.truncation_side)
            found = self._backend.post_process(a, b)
        return list(found.ids), list(found.type_ids) if self.has_segments else [0] * len(found.ids)

    def encode_spans(
        self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt"
    ) -> list[tuple[int, int, int]]:
        """See `Tokenizer.encode_spans`."""
        check_texts([text], parameter)
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return [(token_id, start, stop) for token_id, (start, stop) in zip(encoding.ids, encoding.offsets)]

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True, *, parameter: str = "prompt"
    ) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            check_texts(texts, parameter)
            raise
        return [list(encoding.ids) for encoding in encodings]

    def decode(
        self,
        token_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """See `Tokenizer.decode`. Runs of byte tokens decode as in SentencePiece: one U+FFFD per invalid
        byte.
        """
        if self._rule is None:
            return self._decode_whole(list(token_ids), skip_special_tokens=skip_special_tokens)
        stream = self.make_stream(skip_special_tokens=skip_special_tokens)
        return stream.push(token_ids) + stream.flush()

    def _decode_whole(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        text = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return clean_up_spaces(text) if self._cleans_up else text

    def make_stream(
        self,
        context: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> TextStream:
        """See `Tokenizer.make_stream`."""
        if self._rule is None:
            return WindowStream(partial(self._decode_whole, skip_special_tokens=skip_special_tokens), context)
        pieces = self._text_pieces if skip_special_tokens else self._all_pieces
        return PieceStream(pieces, self._rule, context)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        if self._rule is None:
            return self._decode_whole([token_id], skip_special_tokens=False).encode()
        piece = self._all_pieces[token_id]
        return piece if isinstance(piece, bytes) else piece.encode()

    def id_to_token(self, token_id: int) -> str | None:
        """See `Tokenizer.id_to_token`."""
        return self._backend.id_to_token(token_id) if token_id >= 0 else None

    def token_to_id(self, token: str) -> int | None:
        """See `Tokenizer.token_to_id`."""
        return self._backend.token_to_id(token)

    def get_vocab(self) -> dict[str, int]:
        """See `Tokenizer.get_vocab`."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    @cached_property
    def _vocab_extent(self) -> tuple[int, int]:
        """As in `Tokenizer`, without a copy of the vocabulary, which would leave the process 20 MB larger for good."""
        num_left, longest, token_id = self._backend.get_vocab_size(with_added_tokens=True), 1, 0
        end = 2 * num_left
        while num_left and token_id < end:
            token = self._backend.id_to_token(token_id)
            token_id += 1
            if token is not None:
                num_left -= 1
                longest = max(longest, len(token))
        return super()._vocab_extent if num_left else (token_id, longest)

    def to_json(self) -> str:
        """The whole of it as the text of a tokenizer.json."""
        return self._backend.to_str()

    @cached_property
    def all_special_ids(self) -> frozenset[int]:
        """See `Tokenizer.all_special_ids`."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)


def check_texts(texts: Iterable[str], parameter: str) -> None:
    """Raise InvalidRequestError for the first text that is not a str or holds a lone surrogate."""
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequestError(f"{parameter} must be text, got {describe(text)}", parameter=parameter)
        if _has_lone_surrogate(text):
            message = f"{parameter} must be valid Unicode, got a lone surrogate in {describe(text)}"
            raise InvalidRequestError(message, parameter=parameter, value=text)
