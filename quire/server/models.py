"""The models behind one server: what a route needs of a model, and how a name in a request leads to one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from quire.config import EngineConfig
from quire.engine.observation import Observation
from quire.engine.output_stream import OnNews, OutputStream
from quire.errors import (
    InvalidRequestError,
    PromptTooLongError,
    QuireError,
    UnknownModelError,
    describe,
    wrong_value,
)
from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.exchange import current_exchange
from quire.server.metrics import ModelMetrics, RequestWatch
from quire.server.request_log import RequestLog

Prompt = str | list[int] | dict[str, Any]
"""Text, token ids that are used as they are, or token ids with images; see `quire.engine.inputs.Prompt`."""

CLIENT_ALIASES = ("tgi", "dummy")
"""Names that `text-generation` and `huggingface_hub` send for whatever the server has."""

ReloadMode = Literal["swap", "drain"]
"""`swap`: load beside the engine that serves, then let new requests go to the new one. `drain`: let new requests wait while
the running ones finish, unload, load; for memory that does not hold both.
"""

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

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prompts; False, and nothing done, while a request holds blocks. Raises EngineDeadError."""
        ...

    async def health(self) -> None:
        """Raises EngineDeadError when the engine cannot serve."""
        ...

    async def ready(self) -> None:
        """Raises NotReadyError when requests wait for an engine that computes none, or what `health` raises."""
        ...

    async def shutdown(self) -> None:
        """Stop and give the memory back."""
        ...


class ServedModel:
    """A loaded model: its engine, the name it goes by in responses, its metrics."""

    def __init__(self, engine: Engine, name: str, metrics: ModelMetrics) -> None:
        self.engine = engine
        self.name = name
        """As the request named it, or the first served name."""
        self.metrics = metrics
        self.request_log: RequestLog | None = None
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
        watch = self._watch(request_id, prompt, params)
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

    def _watch(self, request_id: str, prompt: Prompt, params: SamplingParams) -> RequestWatch:
        watch = self.metrics.watch(params, request_id)
        exchange = current_exchange()
        if exchange is not None:
            exchange.add(self.name, watch)
        if self.request_log is not None:
            shown = prompt["prompt_token_ids"] if isinstance(prompt, dict) else prompt  # of images only the places
            self.request_log.write(request_id, shown, params)
        return watch


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


@dataclass(frozen=True, slots=True)
class ReloadOrder:
    """What shall be served from now on. What is None stays as it is; without a model, its files are read again."""

    model: str | None = None
    """Folder or hub id; of a pool's models, the name of the one to load again."""
    revision: str | None = None
    quantization: str | None = None
    """`none`: the weights as they are in the checkpoint."""
    kv_cache_memory_bytes: int | str | None = None
    mode: ReloadMode | None = None
    """None: `swap` where it can be, which is with one model."""
    timeout_s: float = 60.0
    """Longest that `drain` waits for running requests before it gives up."""

    @property
    def changes(self) -> dict[str, Any]:
        """The engine's options that the order gives, by their names."""
        names = ("model", "revision", "quantization", "kv_cache_memory_bytes")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


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

    async def reload(self, order: ReloadOrder) -> ServedModel:
        """Load a model anew, or another one in its place, while requests run; returns when only the new one is left.

        Raises InvalidRequestError or a subclass for an order that cannot be carried out, ConflictError for one that found
        requests running for too long, ModelLoadError; the model that was served goes on being served then.
        """
        ...

    async def health(self) -> None:
        """Raises EngineDeadError when a model that should be served cannot."""
        ...

    async def ready(self) -> None:
        """Raises NotReadyError when requests for a loaded model would wait for its engine, or what `health` raises."""
        ...

    async def close(self) -> None:
        """Unload everything; the server stops."""
        ...


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
