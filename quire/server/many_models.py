"""`make_pool`: the models folder, its limits and its loader, from the options of `quire serve` and Ollama's variables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quire import envs, platform
from quire.config.engine_args import EngineArgs
from quire.errors import ConfigError
from quire.loader.hub import resolve_model
from quire.server.args import ServerArgs
from quire.server.durations import parse_duration
from quire.server.metrics import ServerMetrics
from quire.server.model_loader import EngineLoader
from quire.server.model_pool import ModelPool
from quire.server.model_slot import PoolLimits
from quire.server.models_dir import Checkpoint, ModelsDir

_DEFAULT_SHARE_OF_MEMORY = 0.8
_DEFAULT_KEEP_ALIVE = "5m"
_LONGEST_LENGTH = 2**20
"""Tokens; bounds the histograms of lengths, since any model may come."""


def make_pool(engine_args: EngineArgs, args: ServerArgs) -> ModelPool:
    """The pool over `args.models_dir`. A model in `engine_args` is the first of its models, wherever it lies.

    Raises ConfigError, or HubError and ModelLoadError for that model.
    """
    root = Path(args.models_dir or "").expanduser()
    if not root.is_dir():
        raise ConfigError(f"models_dir must be a folder of models, but there is none at {root}")
    limits = _limits(args)
    options = replace(engine_args, model=None, served_model_name=None)
    loader = EngineLoader(
        options, limits.memory_bytes, envs.OLLAMA_NUM_PARALLEL.read(), envs.OLLAMA_CONTEXT_LENGTH.read()
    )
    return ModelPool(ModelsDir(root, _first(engine_args)), loader, limits, ServerMetrics(_LONGEST_LENGTH))


def _first(args: EngineArgs) -> Checkpoint | None:
    if args.model is None:
        return None
    name = args.served_model_name or args.model
    folder = resolve_model(args.model, args.revision, args.download_dir)
    return Checkpoint(name if isinstance(name, str) else name[0], Path(folder))


def _limits(args: ServerArgs) -> PoolLimits:
    free = int(platform.available_memory_bytes() * _DEFAULT_SHARE_OF_MEMORY)
    return PoolLimits(
        memory_bytes=args.models_memory or free,
        max_models=args.max_loaded_models or envs.OLLAMA_MAX_LOADED_MODELS.read(),
        keep_alive_s=_keep_alive(args),
        wait_s=args.models_wait,
    )


def _keep_alive(args: ServerArgs) -> float:
    given, name = args.keep_alive, "keep_alive"
    if given is None:
        given, name = envs.OLLAMA_KEEP_ALIVE.read() or _DEFAULT_KEEP_ALIVE, envs.OLLAMA_KEEP_ALIVE.name
    try:
        return parse_duration(given)
    except ValueError as error:
        raise ConfigError(f"{name} {error}") from None
