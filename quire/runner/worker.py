"""One rank on one device: sets it up, loads the model, reserves the KV cache, executes steps."""

from __future__ import annotations

import torch

from quire import envs, ops, parallel, platform
from quire.batch import ScheduledBatch, StepResult
from quire.config.rope import context_length
from quire.config.types import EngineConfig, KVCacheSpec
from quire.errors import ConfigError, NotSupportedError
from quire.loader import load_model
from quire.loader.load import weight_bytes
from quire.log import get_logger, warn_once
from quire.ops import registry
from quire.runner.kv_cache import KVCache, cache_dtype, plan_kv_cache
from quire.runner.model_runner import ModelRunner

_logger = get_logger(__name__)


class Worker:
    """A rank, ready to execute when constructed."""

    def __init__(
        self, config: EngineConfig, rank: int = 0, init_method: str = "", kv: KVCacheSpec | None = None
    ) -> None:
        """`kv`: pools of this size instead of planning them, for ranks that must agree."""
        self.config = config
        self.device = resolve_device(config.parallel.device, rank)
        _set_threads(config, self.device)
        _refuse_unsupported(config)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        parallel.init_tensor_parallel(rank, config.parallel.tensor_parallel_size, init_method, backend)
        self.model = load_model(config.model, config.load, self.device)
        self.kv = kv or plan_kv_cache(config, self.device)
        kv_cache = KVCache(self.kv, config.model.hf, cache_dtype(config), self.device)
        self.runner = ModelRunner(self.model, kv_cache, config, self.device)
        _logger.debug("ops on %s: %s", self.device, registry.table(self.device))

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step; see ModelRunner.execute."""
        return self.runner.execute(batch)

    def weight_bytes(self) -> int:
        """Memory of this rank's weights."""
        return weight_bytes(self.model)

    def op_table(self) -> dict[str, str]:
        """Which backend runs each op."""
        return registry.table(self.device)


def resolve_device(name: str, rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is one; raises ConfigError for a device that is not here."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no CUDA device; use cpu or auto")
    if rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {rank} needs a CUDA device of its own, but there are {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _set_threads(config: EngineConfig, device: torch.device) -> None:
    """All CPUs of this process for a CPU rank; CUDA ranks need few."""
    if device.type == "cpu":
        if variable := platform.undo_binding():
            warn_once(
                _logger,
                f"{variable} is set and torch was imported before quire: OpenMP has bound this process to one CPU. "
                "Unset it, or import quire first",
            )
        count = config.parallel.num_threads or envs.NUM_THREADS.read() or platform.cpu_count()
        ops.set_num_threads(count)


def _refuse_unsupported(config: EngineConfig) -> None:
    reach = context_length(config.model.hf)
    if config.scheduler.max_model_len > reach:
        raise ConfigError(
            f"max_model_len must be at most the model's {reach} positions, got {config.scheduler.max_model_len}"
        )
    if config.parallel.pipeline_parallel_size != 1:
        raise NotSupportedError(
            "pipeline_parallel_size above 1 is not supported yet",
            parameter="pipeline_parallel_size",
            value=config.parallel.pipeline_parallel_size,
        )
