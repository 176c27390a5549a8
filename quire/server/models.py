"""The models behind one server: what a route needs of a model, and how a name in a request leads to one."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from quire.config import EngineConfig
from quire.engine.observation import Observation
from quire.engine.output_stream import OnNews, OutputStream
from quire.errors import (
    InvalidRequestError,
    NotSupportedError,
    PromptTooLongError,
    QuireError,
    UnknownModelError,
    describe,
    wrong_value,
)
from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.metrics import ModelMetrics, RequestWatch

Prompt = str | list[int]
"""Text, or token ids that are used as they are."""

CLIENT_ALIASES = ("tgi", "dummy")
"""Names that `text-generation` and `huggingface_hub` send for whatever the server has."""

_request_numbers = itertools.count()


class Engine(Protocol):
    """What the server sees of an engine."""

    config: EngineConfig
    tokenizer: Any
    max_model_len: int
    """What the model and the KV cache allow."""

    async def open(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str,
        on_news: OnNews,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        add_special_tokens: bool = True,
    ) -> OutputStream:
        """Start one request; see `AsyncLLMEngine.open`."""
        ...

    def stats(self) -> Any:
        """A snapshot of gauges and counters."""
        ...

    async def observe(self, after: int = 0, chosen: Iterable[str] = ()) -> Observation:
        """A look at blocks and steps; see `EngineCore.observe`."""
        ...

    async def health(self) -> None:
        """Raises EngineDeadError when the engine cannot serve."""
        ...


class ServedModel:
    """A loaded model: its engine, the name it goes by in responses, its metrics."""

    def __init__(self, engine: Engine, name: str, metrics: ModelMetrics) -> None:
        self.engine = engine
        self.name = name
        """As the request named it, or the first served name."""
        self.metrics = metrics
        self._tenant = ""
        self._salt = ""
        """What separates a tenant's prefixes in the cache from those of others; empty: nothing."""

    def for_tenant(self, tenant: str, *, shares_cache: bool) -> ServedModel:
        """The same model for the requests of one tenant; unless `shares_cache`, it finds no prefix of another's."""
        model = ServedModel(self.engine, self.name, self.metrics)
        model._tenant = tenant
        model._salt = "" if shares_cache else f"{tenant}/"
        return model

    @property
    def config(self) -> EngineConfig:
        """The engine's resolved configuration."""
        return self.engine.config

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        return self.engine.max_model_len

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

    def encode(self, text: str, *, add_special_tokens: bool, parameter: str = "prompt") -> list[int]:
        """Token ids of a text; one that cannot fit the context is refused before it costs time."""
        limit = self.max_model_len * self.tokenizer.max_chars_per_token
        if len(text) > limit:
            raise PromptTooLongError(
                f"This model's maximum context length is {self.max_model_len} tokens. "
                f"However, your prompt contains {len(text)} characters, more than that many tokens can hold.",
                parameter=parameter,
                max_model_len=self.max_model_len,
            )
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens, parameter=parameter)
        return ids

    async def open(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        on_news: OnNews,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
    ) -> OutputStream:
        """Start one request; what it gives is written down by the metrics on its way.

        Raises InvalidRequestError for more sequences than may run at a time: a request costs no more than its seats.
        """
        limit = self.config.scheduler.max_num_seqs
        if params.n > limit:
            raise wrong_value("n", f"an integer in [1, {limit}] (--max-num-seqs)", params.n)
        unique_id = f"{request_id}-{next(_request_numbers)}"  # clients may repeat an X-Request-Id
        if self._salt:
            cache_salt = self._salt + (cache_salt or "")
        watch = self.metrics.watch(params)
        try:
            stream = await self.engine.open(
                prompt,
                params,
                unique_id,
                on_news,
                priority=priority,
                cache_salt=cache_salt,
                tenant=self._tenant,
                add_special_tokens=add_special_tokens,
            )
        except QuireError as error:
            watch.fail(error)
            raise
        return _WatchedStream(stream, watch)


class _WatchedStream:
    """An `OutputStream` whose outputs the metrics see."""

    __slots__ = ("_stream", "_watch")

    def __init__(self, stream: OutputStream, watch: RequestWatch) -> None:
        self._stream = stream
        self._watch = watch

    def take(self) -> RequestOutput:
        """See `OutputStream.take`."""
        try:
            output = self._stream.take()
        except QuireError as error:
            self._watch.fail(error)
            raise
        self._watch.observe(output)
        return output

    def close(self) -> None:
        """See `OutputStream.close`."""
        self._stream.close()
        self._watch.close()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model without loading it."""

    name: str
    path: str
    """Folder or hub id."""
    max_model_len: int | None
    """Tokens; None for a model that was never loaded."""
    folder: str
    """Where its files are."""


@dataclass(frozen=True, slots=True)
class Residency:
    """How a loaded model stays in memory."""

    num_bytes: int | None
    """Weights and KV cache; None where nobody counts."""
    expires_at: float | None
    """Seconds since the epoch when it is unloaded unless somebody uses it; None: never."""


class Models(Protocol):
    """The models that this server answers for."""

    def names(self) -> Sequence[str]:
        """Every name a request may use, first the default."""
        ...

    def card(self, name: str) -> ModelCard:
        """What is known of one model; raises UnknownModelError."""
        ...

    def lease(self, name: str | None) -> AbstractAsyncContextManager[ServedModel]:
        """The model of that name, loaded, and kept loaded until the lease ends; absent or empty: the default.

        Raises UnknownModelError, or what keeps the model from being loaded.
        """
        ...

    def loaded(self) -> Sequence[ServedModel]:
        """The models in memory now, each once, under its first name."""
        ...

    def is_loaded(self, name: str | None) -> bool:
        """Whether a lease of that name is had at once, or refused at once."""
        ...

    def residency(self, name: str) -> Residency:
        """How one of the loaded models stays; raises UnknownModelError for one that is not loaded."""
        ...

    def keep(self, name: str, seconds: float) -> None:
        """From now on a loaded model stays this long after its last use; `math.inf`: until its place is needed.

        Models that are never unloaded ignore it.
        """
        ...

    async def unload(self, name: str) -> None:
        """Let go of a model once nobody uses it; one that is not loaded is fine.

        Raises UnknownModelError, or NotSupportedError where models are never unloaded.
        """
        ...

    async def health(self) -> None:
        """Raises EngineDeadError when a model that should be served cannot."""
        ...


class OneModel:
    """One engine under one or several names, for as long as the server lives."""

    def __init__(self, engine: Engine, metrics: ModelMetrics) -> None:
        self._engine = engine
        self._metrics = metrics

    def names(self) -> Sequence[str]:
        """See `Models.names`."""
        return self._engine.config.model.served_model_names

    def card(self, name: str) -> ModelCard:
        """See `Models.card`."""
        model = self._engine.config.model
        return ModelCard(
            resolve_name(name, self.names()), model.model, self._engine.max_model_len, model.path
        )

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[ServedModel]:
        """See `Models.lease`."""
        yield ServedModel(self._engine, resolve_name(name, self.names()), self._metrics)

    def loaded(self) -> Sequence[ServedModel]:
        """See `Models.loaded`."""
        return [ServedModel(self._engine, self.names()[0], self._metrics)]

    def is_loaded(self, name: str | None) -> bool:
        """See `Models.is_loaded`."""
        return True

    def residency(self, name: str) -> Residency:
        """See `Models.residency`."""
        resolve_name(name, self.names())
        return Residency(num_bytes=None, expires_at=None)

    def keep(self, name: str, seconds: float) -> None:
        """See `Models.keep`."""

    async def unload(self, name: str) -> None:
        """See `Models.unload`."""
        shown = resolve_name(name, self.names())
        raise NotSupportedError(
            f"{describe(shown)} is the only model of this server and stays loaded (see --models-dir)", parameter="model"
        )

    async def health(self) -> None:
        """See `Models.health`."""
        await self._engine.health()


def resolve_name(name: str | None, names: Sequence[str]) -> str:
    """The served name that a request means: itself, itself with Ollama's `:latest`, or the first for a name that
    clients send without meaning one. Raises UnknownModelError.
    """
    if name in names:
        assert name is not None
        return name
    if not name or name.removesuffix(":latest") in CLIENT_ALIASES:
        return names[0]
    if name.removesuffix(":latest") in names:
        return name.removesuffix(":latest")
    raise UnknownModelError(
        f"The model {describe(name)} does not exist. This server serves: {', '.join(names)}",
        parameter="model",
        value=name,
    )
