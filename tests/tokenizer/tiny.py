"""Tiny tokenizers of every kind, built in memory, so that most tests need no files."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from quire.tokenizer.pieces import byte_level_alphabet
from quire.tokenizer.settings import TokenizerSettings
from quire.tokenizer.tokenizer import FastTokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _with_specials(backend: Tokenizer, *plain: str) -> Tokenizer:
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL.values()])
    backend.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return backend


@cache
def byte_level() -> FastTokenizer:
    """Byte-level BPE: every byte, a few merges (one of them half a character), odd added tokens."""
    stand_in = {byte: char for char, byte in byte_level_alphabet().items()}
    vocab = {stand_in[byte]: byte for byte in range(256)}
    merges = []
    for left, right in (("t", "h"), ("th", "e"), ("Ġ", "the"), (stand_in[0xF0], stand_in[0x9F]), ("a", "b")):
        merges.append((left, right))
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return FastTokenizer(
        _with_specials(backend, "Ġodd", "two words", "你好"), TokenizerSettings(special_tokens=SPECIAL)
    )


@cache
def sentencepiece() -> FastTokenizer:
    """Llama style: byte fallback, spaces as `▁`, the first space stripped."""
    words = ["▁", "▁the", "th", "e", "▁a", "b", "stop", "é", "你", "▁▁"]
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    vocab |= {word: len(vocab) + index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab, [("▁", "▁")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", left=1),
    ]
    backend.decoder = decoders.Sequence(steps)
    return FastTokenizer(_with_specials(backend, "<extra>"), TokenizerSettings(special_tokens=SPECIAL))


@cache
def word_level() -> FastTokenizer:
    """A decoder without independent pieces: words joined with spaces."""
    words = ["<unk>", "the", "stop", "a", "b", ".", "you", "n't"]
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return FastTokenizer(_with_specials(backend), TokenizerSettings(special_tokens=SPECIAL))


EXACT = {"byte_level": byte_level, "sentencepiece": sentencepiece}
ALL = EXACT | {"word_level": word_level}
