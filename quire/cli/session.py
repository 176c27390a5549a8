"""An engine for the terminal: prompts or conversations in, text on standard output as it grows."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType

from quire import envs
from quire.cli.decoding import sampling_fields
from quire.config.engine_args import EngineArgs
from quire.engine.async_engine import AsyncLLMEngine
from quire.errors import RequestFailedError
from quire.log import get_logger
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import render_chat


class Session:
    """Holds the engine (in this process) and its event loop; use it with `with`."""

    def __init__(self, engine_args: EngineArgs, args: argparse.Namespace) -> None:
        """Loads the model. Raises ConfigError, ModelLoadError, or InvalidRequestError for a wrong decoding
        flag.
        """
        _quiet_log()
        fields = {**sampling_fields(args), "output_kind": RequestOutputKind.DELTA}
        SamplingParams(**fields)
        self._runner = asyncio.Runner()
        self._engine = AsyncLLMEngine.from_engine_args(engine_args)
        self._params = self._engine.default_sampling_params().clone(**fields)
        self._template = self._engine.config.model.chat_template

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._engine.shutdown())
        self._runner.close()

    @property
    def model_name(self) -> str:
        """What the model is called."""
        return self._engine.config.model.served_model_names[0]

    @property
    def has_chat_template(self) -> bool:
        """Whether the model knows conversations."""
        tokenizer = self._engine.tokenizer
        return bool(self._template or (tokenizer is not None and tokenizer.chat_template))

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation. Raises InvalidRequestError."""
        text = render_chat(self._engine.tokenizer, messages, chat_template=self._template)  # type: ignore[arg-type]
        return self._engine.tokenizer.encode(text, False)  # type: ignore[union-attr]

    def answer(self, prompt: str | list[int]) -> str:
        """Print the answer as it grows, and a line end; returns it. Ctrl-C ends it with KeyboardInterrupt."""
        return self._runner.run(self._print(prompt))

    async def _print(self, prompt: str | list[int]) -> str:
        pieces = []
        try:
            async for piece in self._pieces(prompt):
                pieces.append(piece)
                print(piece, end="", flush=True)
        finally:
            print(flush=True)
        return "".join(pieces)

    async def _pieces(self, prompt: str | list[int]) -> AsyncIterator[str]:
        async with aclosing(self._engine.generate(prompt, self._params)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                if output.error is not None:
                    raise RequestFailedError(output.error)
                yield output.outputs[0].text


def _quiet_log() -> None:
    """Only warnings beside the answer, unless the log level was asked for."""
    if envs.LOG_LEVEL.read() == envs.LOG_LEVEL.default:
        get_logger("quire").setLevel(logging.WARNING)


def read_stdin() -> str:
    """All of standard input, without its last line end."""
    return sys.stdin.read().removesuffix("\n")
