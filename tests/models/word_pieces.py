"""A tokenizer of BERT's kind for models of the tests: words of letters, one piece per letter."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz.,?!"


def save_word_pieces(folder: Path) -> tokenizers.Tokenizer:
    """Write it to `folder`; its ids stay below 70."""
    pieces = [*SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    backend = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "[PAD]", "model_max_length": 512}))
    return backend
