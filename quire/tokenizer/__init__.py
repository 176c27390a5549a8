"""Text at the border of the engine: loading tokenizers, encoding, incremental decoding, chat templates."""

from quire.tokenizer.chat_template import check_template, render_chat
from quire.tokenizer.detokenize import IncrementalDetokenizer
from quire.tokenizer.load import TOKENIZER_MODES, load_tokenizer
from quire.tokenizer.tokenizer import Tokenizer
from quire.tokenizer.truncation import encode_within

__all__ = [
    "TOKENIZER_MODES",
    "IncrementalDetokenizer",
    "Tokenizer",
    "check_template",
    "encode_within",
    "load_tokenizer",
    "render_chat",
]
