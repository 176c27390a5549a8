"""Fixtures of the engine's tests: a tokenizer folder, and engines over the fake executor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quire.engine.engine import LLMEngine
from quire.engine.engine_core import EngineCore
from tests.engine.fakes import FakeExecutor, Script, counts, make_config, write_byte_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of bytes."""
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def make_engine(byte_tokenizer: Path) -> Callable[..., LLMEngine]:
    """Makes an `LLMEngine` over a script."""

    def make(
        script: Script = counts, *, executor: FakeExecutor | None = None, **options: object
    ) -> LLMEngine:
        config = make_config(byte_tokenizer, **options)
        return LLMEngine(config, EngineCore(config, executor or FakeExecutor(script)))

    return make
