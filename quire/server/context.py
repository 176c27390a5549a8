"""What every route needs: the engine, the server's own options, the names it answers to, metrics, running
requests.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from quire.config import EngineConfig
from quire.errors import InvalidRequestError, PromptTooLongError, UnknownModelError, describe
from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.args import ServerArgs
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import ServerMetrics


class Engine(Protocol):
    """What the server sees of an engine."""

    config: EngineConfig
    tokenizer: Any
    max_model_len: int
    """What the model and the KV cache allow."""

    def generate(
        self,
        prompt: str | list[int],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs of one request; closing the iterator aborts it."""
        ...

    def stats(self) -> Any:
        """A snapshot of gauges and counters."""
        ...

    async def health(self) -> None:
        """Raises EngineDeadError when the engine cannot serve."""
        ...


@dataclass
class ServerContext:
    """Shared by all routes of one application."""

    engine: Engine
    args: ServerArgs
    metrics: ServerMetrics
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    created: int = field(default_factory=lambda: int(time.time()))
    _counter: Iterator[int] = field(default_factory=itertools.count)

    @property
    def config(self) -> EngineConfig:
        """The engine's resolved configuration."""
        return self.engine.config

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; raises InvalidRequestError where the engine runs without one."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("this server runs without a tokenizer (--skip-tokenizer-init)")
        return tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered for this model."""
        tokenizer = self.engine.tokenizer
        return bool(self.config.model.chat_template or (tokenizer is not None and tokenizer.chat_template))

    def resolve_model(self, name: str | None) -> str:
        """The served name a request means; absent or empty is the first. Raises UnknownModelError."""
        names = self.config.model.served_model_names
        if not name:
            return names[0]
        if name not in names:
            aliases = ", ".join(names)
            raise UnknownModelError(
                f"The model {describe(name)} does not exist. This server serves: {aliases}",
                parameter="model",
                value=name,
            )
        return name

    def encode(self, text: str, *, add_special_tokens: bool, parameter: str = "prompt") -> list[int]:
        """Token ids of a text; one that cannot fit the context is refused before it costs time."""
        limit = self.engine.max_model_len * self.tokenizer.max_chars_per_token
        if len(text) > limit:
            raise PromptTooLongError(
                f"This model's maximum context length is {self.engine.max_model_len} tokens. "
                f"However, your prompt contains {len(text)} characters, more than that many tokens can hold.",
                parameter=parameter,
            )
        return self.tokenizer.encode(text, add_special_tokens, parameter=parameter)

    @staticmethod
    def now() -> int:
        """Seconds since the epoch, for `created`."""
        return int(time.time())

    async def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncGenerator[RequestOutput]:
        """The engine's outputs, observed by the metrics on their way."""
        unique_id = f"{request_id}-{next(self._counter)}"  # clients may repeat an X-Request-Id
        outputs = self.engine.generate(
            prompt,
            params,
            unique_id,
            priority=priority,
            cache_salt=cache_salt,
            add_special_tokens=add_special_tokens,
        )
        async for output in self.metrics.observe(outputs, params):
            yield output
