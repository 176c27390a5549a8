"""`EngineReloader`: from an order to reload to an engine with the changed options, once disk and memory allow it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quire import platform
from quire.config import EngineConfig
from quire.config.engine_args import EngineArgs
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.resolve import DEFAULT_MODEL, may_use_gpu
from quire.errors import ConfigError, HubError, InvalidRequestError, ModelLoadError
from quire.server.model_loader import EngineStarter, check_weights, given_kv_bytes, kv_bytes, weight_bytes
from quire.server.models import Engine, ReloadOrder

PROCESS_BYTES = 2**29
"""Memory of an engine's process beside weights and KV cache, generously."""
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """How an order will be carried out, and what it takes of the memory."""

    options: EngineArgs
    """What the next order will change: as given by the operator, open ends left open."""
    args: EngineArgs
    """The same with the KV cache's size and every served name."""
    num_weight_bytes: int
    num_kv_bytes: int

    @property
    def num_bytes(self) -> int:
        """All that the engine will take."""
        return self.num_weight_bytes + self.num_kv_bytes + PROCESS_BYTES


class EngineReloader:
    """Implements `one_model.Reloader`. Options that no order gives stay as they are.

    A KV cache whose size is left open keeps the bytes that it had, and has room for one request of full length at least. Names
    that were given stay; otherwise a model adds its own before all those that the server has answered to.
    """

    def __init__(self, args: EngineArgs, config: EngineConfig) -> None:
        """The options of the engine that serves first, and what they became."""
        self._options = self._args = args
        self._has_given_names = args.served_model_name is not None
        self._num_weight_bytes = weight_bytes(config)
        self._starter = EngineStarter()

    def plan(self, order: ReloadOrder, serving: Engine) -> ReloadPlan:
        """See `Reloader.plan`. The numbers are in the error where memory is short."""
        try:
            options = replace(self._options, **_changes(order))
            args = options if self._has_given_names else replace(options, served_model_name=_all_names(options, serving))
            config = args.create_engine_config()
            check_weights(config.model.path, args.load_format)
        except HubError:
            raise
        except (ConfigError, ModelLoadError) as error:
            raise InvalidRequestError(str(error), parameter=_parameter_of(error, order)) from error
        if given_kv_bytes(config) is None:
            args = replace(args, kv_cache_memory_bytes=_kv_bytes_as_before(config, serving))
            config = args.create_engine_config()
        plan = ReloadPlan(options, args, weight_bytes(config), given_kv_bytes(config) or 0)
        self._check_memory(order, plan)
        return plan

    def _check_memory(self, order: ReloadOrder, plan: ReloadPlan) -> None:
        """What a GPU has free nobody knows here; the engine itself says when its memory is short."""
        is_drained = order.mode == "drain"
        if may_use_gpu(plan.args.device):
            if is_drained:
                return
            raise InvalidRequestError(
                "mode must be 'drain' on a GPU: the KV cache of the engine that serves takes what is free there, "
                f"got {order.mode or 'swap'!r}",
                parameter="mode",
            )
        free = platform.available_memory_bytes() + (self._num_weight_bytes if is_drained else 0)
        if plan.num_bytes > free:
            raise InvalidRequestError(_too_large(plan, free, is_drained), parameter="mode")

    async def load(self, plan: ReloadPlan) -> AsyncLLMEngine:
        """See `Reloader.load`."""
        return await self._starter.start(plan.args)

    async def restore(self) -> AsyncLLMEngine:
        """See `Reloader.restore`."""
        return await self._starter.start(self._args)

    def accept(self, plan: ReloadPlan) -> None:
        """See `Reloader.accept`."""
        self._options, self._args = plan.options, plan.args
        self._num_weight_bytes = plan.num_weight_bytes


def _changes(order: ReloadOrder) -> dict[str, Any]:
    """Options by their names; a revision belongs to the model that it was given with."""
    changes = dict(order.changes)
    if changes.get("quantization") == "none":
        changes["quantization"] = None
    if "kv_cache_memory_bytes" in changes:
        changes["num_gpu_blocks_override"] = None
    if "model" in changes:
        changes.setdefault("revision", None)
    return changes


def _all_names(options: EngineArgs, serving: Engine) -> list[str]:
    own = options.model or DEFAULT_MODEL
    return list(dict.fromkeys([own, *serving.config.model.served_model_names]))


def _kv_bytes_as_before(config: EngineConfig, serving: Engine) -> int:
    """At most what the most running requests can fill."""
    had = serving.stats().num_blocks * kv_bytes(serving.config, serving.config.cache.block_size)
    one = kv_bytes(config, config.scheduler.max_model_len)
    return min(max(had, one), one * config.scheduler.max_num_seqs)


def _parameter_of(error: Exception, order: ReloadOrder) -> str | None:
    """The field of the order that the message begins with; a model that cannot be had is the field `model`."""
    named = next((name for name in order.changes if str(error).startswith(name)), None)
    return "model" if named is None and isinstance(error, ModelLoadError) else named


def _too_large(plan: ReloadPlan, free: int, is_drained: bool) -> str:
    where = "even after the engine that serves is unloaded" if is_drained else "beside the engine that serves"
    way_out = "" if is_drained else "mode 'drain', which unloads first, or "
    return (
        f"the new engine needs {plan.num_bytes / _GIB:.2f} GiB ({plan.num_weight_bytes / _GIB:.2f} for weights, "
        f"{plan.num_kv_bytes / _GIB:.2f} for the KV cache, {PROCESS_BYTES / _GIB:.2f} for its process), and "
        f"{free / _GIB:.2f} GiB are free {where}; try {way_out}a smaller kv_cache_memory_bytes"
    )
