"""The text side of an engine: its tokenizer, loaded as the configuration says."""

from __future__ import annotations

from quire.config.types import EngineConfig
from quire.errors import ConfigError, InvalidRequestError
from quire.tokenizer import Tokenizer, check_template, load_tokenizer


def load_text_side(config: EngineConfig) -> Tokenizer | None:
    """The model's tokenizer, or None with skip_tokenizer_init. Raises ConfigError when it cannot be read, and
    for a chat template that is none.
    """
    model = config.model
    if model.chat_template is not None:
        _check_chat_template(model.chat_template)
    if model.skip_tokenizer_init:
        return None
    return load_tokenizer(
        model.tokenizer_path,
        tokenizer_mode=model.tokenizer_mode,
        trust_remote_code=model.trust_remote_code,
        revision=config.load.tokenizer_revision,
        download_dir=config.load.download_dir,
        token=config.load.hf_token,
    )


def _check_chat_template(template: str) -> None:
    try:
        check_template(template)
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from None
