"""How many workers there are and where they run; `make_executor` picks by configuration and imports only that one."""

from __future__ import annotations

from quire import envs
from quire.config.types import EngineConfig
from quire.errors import ConfigError, NotSupportedError
from quire.executor.base import Executor

__all__ = ["Executor", "make_executor"]


def make_executor(config: EngineConfig) -> Executor:
    """The executor that `config.parallel` names, ready to execute."""
    parallel = config.parallel
    if parallel.executor == "simulated":
        from quire.executor.simulated import SimulatedExecutor, StepTime

        return SimulatedExecutor(config, StepTime(envs.SIMULATED_STEP_S.read()))
    if parallel.executor != "local":
        raise ConfigError(f"executor must be local or simulated, got {parallel.executor!r}")
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(parallel, name) != 1:
            raise NotSupportedError(f"{name} above 1 is not supported yet", parameter=name)
    from quire.executor.local import LocalExecutor

    return LocalExecutor(config)
