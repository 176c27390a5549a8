"""Text at the border of the engine: loading tokenizers, encoding, incremental decoding, chat templates."""

from quire.tokenizer.chat_template import check_template, render_chat
from quire.tokenizer.detokenize import IncrementalDetokenizer
from quire.tokenizer.load import TOKENIZER_MODES, load_tokenizer
from quire.tokenizer.tokenizer import Tokenizer

__all__ = [
    "TOKENIZER_MODES",
    "IncrementalDetokenizer",
    "Tokenizer",
    "check_template",
    "load_tokenizer",
    "render_chat",
]
