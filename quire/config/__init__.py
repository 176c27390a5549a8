"""Configuration: `EngineArgs` (what a user sets) and `EngineConfig` (what the engine reads)."""

from quire.config.types import (
    CacheConfig,
    EngineConfig,
    HFConfig,
    KVCacheSpec,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
)

__all__ = [
    "CacheConfig",
    "EngineConfig",
    "HFConfig",
    "KVCacheSpec",
    "LoadConfig",
    "ModelConfig",
    "ParallelConfig",
    "SchedulerConfig",
]
