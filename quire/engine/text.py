"""The text side of an engine: its tokenizer, and the chat template a user gave."""

from __future__ import annotations

from quire.config.types import ModelConfig
from quire.tokenizer import Tokenizer, load_tokenizer


def load_text_side(config: ModelConfig) -> Tokenizer | None:
    """The model's tokenizer, or None with skip_tokenizer_init. Raises ConfigError when it cannot be read."""
    if config.skip_tokenizer_init:
        return None
    return load_tokenizer(
        config.tokenizer_path, tokenizer_mode=config.tokenizer_mode, trust_remote_code=config.trust_remote_code
    )
