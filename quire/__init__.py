"""Quire: an LLM inference and serving engine. Public names live here and are imported lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quire import platform  # noqa: F401  notes this process's CPUs, before torch binds it to one of them

if TYPE_CHECKING:
    from quire.config.engine_args import EngineArgs
    from quire.config.engine_args import EngineArgs as AsyncEngineArgs
    from quire.engine.async_engine import AsyncLLMEngine
    from quire.engine.engine import LLMEngine
    from quire.errors import (
        ConfigError,
        EngineDeadError,
        HubError,
        InvalidRequestError,
        ModelLoadError,
        NotSupportedError,
        PromptTooLongError,
        QueueFullError,
        QuireError,
        RequestFailedError,
        UnknownModelError,
        UnsupportedModelError,
    )
    from quire.llm import LLM
    from quire.models import ModelRegistry
    from quire.outputs import (
        BeamSearchOutput,
        BeamSearchSequence,
        ClassificationRequestOutput,
        CompletionOutput,
        EmbeddingRequestOutput,
        Logprob,
        PoolingRequestOutput,
        RequestOutput,
        ScoringRequestOutput,
    )
    from quire.pooling_params import PoolingParams
    from quire.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "quire.llm",
    "LLMEngine": "quire.engine.engine",
    "AsyncLLMEngine": "quire.engine.async_engine",
    "EngineArgs": "quire.config.engine_args",
    "AsyncEngineArgs": "quire.config.engine_args",
    "ModelRegistry": "quire.models",
    "PoolingParams": "quire.pooling_params",
    **dict.fromkeys(("SamplingParams", "BeamSearchParams", "RequestOutputKind"), "quire.sampling_params"),
    **dict.fromkeys(
        (
            "RequestOutput",
            "CompletionOutput",
            "Logprob",
            "BeamSearchOutput",
            "BeamSearchSequence",
            "EmbeddingRequestOutput",
            "PoolingRequestOutput",
            "ClassificationRequestOutput",
            "ScoringRequestOutput",
        ),
        "quire.outputs",
    ),
    **dict.fromkeys(
        (
            "QuireError",
            "ConfigError",
            "ModelLoadError",
            "UnsupportedModelError",
            "HubError",
            "InvalidRequestError",
            "PromptTooLongError",
            "NotSupportedError",
            "UnknownModelError",
            "QueueFullError",
            "RequestFailedError",
            "EngineDeadError",
        ),
        "quire.errors",
    ),
}
_REAL_NAMES = {"AsyncEngineArgs": "EngineArgs"}

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingRequestOutput",
    "EngineArgs",
    "EngineDeadError",
    "HubError",
    "InvalidRequestError",
    "LLMEngine",
    "Logprob",
    "ModelLoadError",
    "ModelRegistry",
    "NotSupportedError",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptTooLongError",
    "QueueFullError",
    "QuireError",
    "RequestFailedError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "UnknownModelError",
    "UnsupportedModelError",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), _REAL_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
