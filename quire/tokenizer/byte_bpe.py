"""Builds byte-level BPE tokenizers from `vocab.json` and `merges.txt`, by tokenizer family."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from quire.tokenizer.settings import TokenizerSettings

# How Qwen2 cuts text before BPE; from the `tokenizer.json` that the Qwen2 models publish.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES = frozenset({"GPT2", "Qwen2"})
"""Families whose pre-tokenizer is known here; others go to the fallback."""


def build_byte_bpe(folder: Path, family: str, settings: TokenizerSettings) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a GPT-2 or Qwen2 folder, without its added tokens."""
    vocab, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
    backend = Tokenizer(BPE.from_file(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.decoder = decoders.ByteLevel()
    prefix_space = bool(settings.add_prefix_space)
    if family == "Qwen2":
        backend.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False)
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    return backend


def add_bos_and_eos(backend: Tokenizer, settings: TokenizerSettings) -> None:
    """Make `encode` add BOS and EOS as `add_bos_token` and `add_eos_token` say."""
    bos = settings.special_tokens.get("bos_token") if settings.add_bos_token else None
    eos = settings.special_tokens.get("eos_token") if settings.add_eos_token else None
    around = [token for token in (bos, eos) if token is not None]
    if not around:
        return
    single = " ".join(part for part in (bos, "$A", eos) if part is not None)
    ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys(around)]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
