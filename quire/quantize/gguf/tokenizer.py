"""What a GGUF file says of a tokenizer: tokens, their kinds, merges or scores, special tokens, chat templates.

Byte-level BPE becomes llama.cpp's tokenizer `gpt2`, whose `tokenizer.ggml.pre` names how text is cut first; SentencePiece's BPE
becomes `llama`. What was made is read again, as `quire.tokenizer.gguf` reads any file, and must give the original's tokens on
samples of text. Where it does not, the whole tokenizer.json goes into the file too: Quire then takes that, and llama.cpp what is
nearest.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from quire.errors import ConfigError, describe
from quire.log import get_logger
from quire.quantize.gguf.file import GgufFile, Value
from quire.tokenizer import Tokenizer
from quire.tokenizer.gguf import load_gguf_tokenizer, pre_tokenizer_of
from quire.tokenizer.gguf_cuts import cuts_named, known_names
from quire.tokenizer.sentencepiece_bpe import Piece, Unsupported, read_model
from quire.tokenizer.tokenizer import FastTokenizer

_logger = get_logger(__name__)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_ADDED_SCORE, _PADDING_SCORE = -1000.0, -10000.0
_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""The format's own spelling."""
_FURTHER_ENDS = ("eot", "eom")
"""Where further tokens that end an answer go."""
_SAMPLES = (
    "Hello, world! It's 7 o'clock, and WE'LL see; they'd've said I'M HERE.",
    "0 12 345 6789 01234567 3.14 1,000,000 x86 a1b22c333 ٣٤٥ ½ ²",
    "  two spaces,   three\ttab\t\ttabs \n newline\n\ntwo\r\n\r\nwindows \n \n mixed\n\n\n   end   ",
    "camelCase SnakeCase snake_case UPPERCASE HTTPServer iPhone don't can't",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # comment\n\n\n/* ok */ <tag attr=\"v\">...</tag> a/b\\c",
    "Größe naïve café coöperate Ελληνικά Русский текст עברית العربية हिन्दी ไทย 한국어 にほんご カタカナ 中文字符 ニ漢字。",
    "🙂🚀 👩‍👩‍👧 e\u0301 \u00a0nbsp\u3000wide … — “quotes” €5 $6 ^_^ ~`@#%&*()+=[]{}|;:<>?!!! ??",
)


def tokenizer_values(tokenizer: Tokenizer, folder: Path, vocab_size: int, end_ids: tuple[int, ...]) -> dict[str, Value]:
    """The metadata of the tokenizer of the checkpoint in `folder`, for `vocab_size` rows of the embedding.

    `end_ids`: tokens that end an answer. Raises ConfigError for a tokenizer that the format does not know.
    """
    if not isinstance(tokenizer, FastTokenizer):
        raise ConfigError(
            f"format gguf needs a tokenizer that the package tokenizers runs; that of {folder} is one of transformers' own: "
            "use format safetensors"
        )
    stated = json.loads(tokenizer.to_json())
    kind = stated["model"]["type"]
    if kind != "BPE":
        raise ConfigError(
            f"format gguf knows byte-level BPE and SentencePiece's BPE, not a tokenizer of type {describe(kind)}: "
            "use format safetensors"
        )
    values = _special_values(tokenizer, end_ids) | _template_values(tokenizer)
    vocabulary = _Vocabulary(stated, vocab_size, folder)
    if stated["model"]["byte_fallback"]:
        return _checked(_sentencepiece_values(tokenizer, vocabulary, values), tokenizer)
    return _checked(values | _byte_bpe_values(stated, vocabulary), tokenizer)


class _Vocabulary:
    """Tokens by id, padded to the rows of the embedding, and their kinds."""

    def __init__(self, stated: dict[str, Any], size: int, folder: Path) -> None:
        self.folder, self.merges = folder, stated["model"]["merges"]
        self.tokens = [f"[PAD{i}]" for i in range(size)]
        self.kinds = [_UNUSED] * size
        known = [(token, token_id, _NORMAL) for token, token_id in stated["model"]["vocab"].items()]
        added = stated["added_tokens"]
        known += [(token["content"], token["id"], _CONTROL if token["special"] else _USER_DEFINED) for token in added]
        for token, token_id, kind in known:
            if token_id >= size:
                raise ConfigError(
                    f"vocab_size is {size}, but the tokenizer has token {describe(token)} with id {token_id}: "
                    "format gguf needs a row of the embedding for each token"
                )
            self.tokens[token_id], self.kinds[token_id] = token, kind
        self.unknown = stated["model"]["unk_token"]

    def values(self) -> dict[str, Value]:
        return {"tokenizer.ggml.tokens": self.tokens, "tokenizer.ggml.token_type": self.kinds}


def _special_values(tokenizer: Tokenizer, end_ids: tuple[int, ...]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, key in _SPECIAL_IDS.items():
        token = tokenizer.special_tokens.get(name)
        token_id = None if token is None else tokenizer.token_to_id(token)
        if token_id is not None:
            values[f"tokenizer.ggml.{key}"] = token_id
    further = [token_id for token_id in end_ids if token_id != tokenizer.eos_token_id]
    if tokenizer.eos_token_id is None and further:
        values["tokenizer.ggml.eos_token_id"] = further.pop(0)
    for name, token_id in zip(_FURTHER_ENDS, further, strict=False):
        values[f"tokenizer.ggml.{name}_token_id"] = token_id
    if len(further) > len(_FURTHER_ENDS):
        _logger.warning("GGUF has no place for more than 3 tokens that end an answer: %s are left out", further[2:])
    ids = tokenizer.encode("a")
    if tokenizer.bos_token_id is not None:
        values["tokenizer.ggml.add_bos_token"] = ids[:1] == [tokenizer.bos_token_id]
    if tokenizer.eos_token_id is not None:
        values["tokenizer.ggml.add_eos_token"] = ids[-1:] == [tokenizer.eos_token_id]
    return values


def _template_values(tokenizer: Tokenizer) -> dict[str, Value]:
    templates = dict(tokenizer.chat_templates)
    default = templates.pop("default", None)
    values: dict[str, Value] = {} if default is None else {"tokenizer.chat_template": default}
    if templates:
        values["tokenizer.chat_templates"] = list(templates)
        values |= {f"tokenizer.chat_template.{name}": template for name, template in templates.items()}
    return values


# -- byte-level BPE ------------------------------------------------------------------------------------------------


def _byte_bpe_values(stated: dict[str, Any], vocabulary: _Vocabulary) -> dict[str, Value]:
    adds_space = any(part.get("add_prefix_space") for part in _parts(stated["pre_tokenizer"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary.merges]
    values: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _name_of_cuts(stated, adds_space),
        "tokenizer.ggml.merges": merges,
    }
    return vocabulary.values() | values | ({"tokenizer.ggml.add_space_prefix": True} if adds_space else {})


def _parts(stated: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or normalizer, of a sequence each."""
    if stated is None:
        return []
    inner = stated.get("pretokenizers") or stated.get("normalizers")
    return [stated] if inner is None else [part for step in inner for part in _parts(step)]


def _name_of_cuts(stated: dict[str, Any], adds_space: bool) -> str:
    """The name whose cuts are the tokenizer's on the samples, or else the nearest: that with the fewest other pieces."""
    normalizes = "NFC" in [part["type"] for part in _parts(stated["normalizer"])]
    own = _pieces(Backend.from_str(json.dumps(stated)).pre_tokenizer)

    def distance(name: str) -> tuple[int, bool, bool]:
        cuts = cuts_named(name)
        assert cuts is not None
        others = len(own ^ _pieces(pre_tokenizer_of(cuts, adds_space)))
        return others, cuts.ignores_merges != bool(stated["model"].get("ignore_merges")), cuts.normalizes != normalizes

    return min(known_names(), key=distance)


def _pieces(cutter: Any) -> set[tuple[int, int, int]]:
    """Places of the pieces that the samples are cut into."""
    if cutter is None:
        return set()
    return {(i, *place) for i, text in enumerate(_SAMPLES) for _, place in cutter.pre_tokenize_str(text)}


# -- SentencePiece -------------------------------------------------------------------------------------------------


def _sentencepiece_values(tokenizer: FastTokenizer, vocabulary: _Vocabulary, values: dict[str, Value]) -> dict[str, Value]:
    values = values | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    values |= vocabulary.values() | {"tokenizer.ggml.scores": _scores(vocabulary)}
    key = "tokenizer.ggml.add_space_prefix"
    spaced, unspaced = values | {key: True}, values | {key: False}
    return spaced if _reads_the_same(spaced, tokenizer) or not _reads_the_same(unspaced, tokenizer) else unspaced


def _scores(vocabulary: _Vocabulary) -> list[float]:
    """Those of tokenizer.model, if it is there; else the order of merges as SentencePiece would number it. Sets kinds too."""
    pieces = _model_pieces(vocabulary)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(vocabulary.merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    scores = []
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        piece = pieces.get(token_id)
        if piece is not None and piece.text == token:
            scores.append(piece.score)
            vocabulary.kinds[token_id] = kind if kind in (_CONTROL, _USER_DEFINED) and piece.kind != _UNKNOWN else piece.kind
            continue
        if token == vocabulary.unknown:
            vocabulary.kinds[token_id] = _UNKNOWN
        elif kind == _NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            vocabulary.kinds[token_id] = _BYTE
        plain = {_UNUSED: _PADDING_SCORE, _NORMAL: 0.0}.get(kind, _ADDED_SCORE)
        scores.append(float(-1 - ranks[token]) if token in ranks else plain)
    return scores


def _model_pieces(vocabulary: _Vocabulary) -> dict[int, Piece]:
    """The pieces of tokenizer.model by id; none where there is no such file or it is of another kind."""
    file = vocabulary.folder / "tokenizer.model"
    try:
        return dict(enumerate(read_model(file).pieces)) if file.is_file() else {}
    except Unsupported:
        return {}


# -- reading it again ----------------------------------------------------------------------------------------------


def _checked(values: dict[str, Value], tokenizer: FastTokenizer) -> dict[str, Value]:
    """The values, with the whole tokenizer beside them where they are not all of it."""
    if _reads_the_same(values, tokenizer):
        return values
    _logger.warning(
        "GGUF has no words for all that this tokenizer does (the nearest, %s %s, gives other tokens for some texts): the file "
        "holds the whole tokenizer.json too, which Quire reads and llama.cpp does not",
        values["tokenizer.ggml.model"],
        values["tokenizer.ggml.pre"],
    )
    return values | {"tokenizer.huggingface.json": tokenizer.to_json()}


def _reads_the_same(values: dict[str, Value], tokenizer: FastTokenizer) -> bool:
    """Whether a file with these values gives the tokenizer's tokens on the samples, special tokens around and between them."""
    special = [token for token in tokenizer.special_tokens.values() if token]
    between = "".join(f"{token}{text}\n" for token, text in zip(special, _SAMPLES, strict=False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.gguf"
        GgufFile(path, values, [])
        again = load_gguf_tokenizer(path)
    texts = (*_SAMPLES, between, "".join(_SAMPLES))
    return all(again.encode(text) == tokenizer.encode(text) for text in texts)
