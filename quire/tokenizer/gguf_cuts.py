"""How text is cut before byte-level BPE, by the names that GGUF files have in `tokenizer.ggml.pre`.

A pattern cuts what the patterns before it left; what matches and what lies between matches are pieces of their own. The patterns
are those of the models' own tokenizer files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cuts:
    """One way to cut, and what else the name stands for."""

    patterns: tuple[str, ...]
    normalizes: bool = False
    """Text becomes NFC first."""
    ignores_merges: bool = False
    """A piece that is a token becomes that token, whatever the merges."""
    adds_bos: bool = False
    """Where the file does not say."""


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_THREE_DIGITS = "[0-9][0-9][0-9]"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HAN_AND_KANA = "[一-龥぀-ゟ゠-ヿ]+"


def _words(digits: str) -> str:
    """GPT-4's way, with so many digits to a piece."""
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased_words(ending: str, digits: str) -> str:
    """GPT-4o's way: a word ends where lower case turns to upper."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)

_GPT2_CUTS = Cuts((_GPT2,))
_DIGITS_THEN_GPT2 = Cuts((r"\p{N}", _GPT2))
_LLAMA3 = Cuts((_words(r"\p{N}{1,3}"),), ignores_merges=True, adds_bos=True)
_QWEN2 = Cuts((_words(r"\p{N}"),), normalizes=True)
_GPT4O = Cuts((_cased_words(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),))
_GPT4 = Cuts((_words(r"\p{N}{1,3}"),))

_BY_NAME = {
    "default": Cuts((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS)),
    "falcon": Cuts((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS)),
    "stablelm2": Cuts((_words(r"\p{N}"),)),
    "tekken": Cuts((_cased_words("", r"\p{N}"),), ignores_merges=True, adds_bos=True),
    "deepseek-v3": Cuts((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_V3)),
}
_BY_NAME |= dict.fromkeys(
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "mellum", "gigachat", "a.x-4.0"), _GPT2_CUTS
)
_BY_NAME |= dict.fromkeys(
    ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), _DIGITS_THEN_GPT2
)
_BY_NAME |= dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2"), _LLAMA3)
_BY_NAME |= dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo"), _QWEN2)
_BY_NAME |= dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O)
_BY_NAME |= dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _GPT4)


def cuts_named(name: str) -> Cuts | None:
    """The cuts that a file's `tokenizer.ggml.pre` names, or None."""
    return _BY_NAME.get(name)


def known_names() -> list[str]:
    """Every name that a file may have; of those that mean the same the most usual first."""
    usual = ("llama-bpe", "qwen2", "gpt-2", "starcoder", "gpt-4o", "dbrx")
    return list(dict.fromkeys((*usual, *_BY_NAME)))
