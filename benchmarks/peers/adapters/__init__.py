"""One file per engine, each behind the same four verbs. Adapters import their engine only when it is used, so that
listing them needs none.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Protocol

from benchmarks.peers.figures import Figures
from benchmarks.peers.workloads import Workload

ADAPTERS = {
    "quire": "benchmarks.peers.adapters.quire:Quire",
    "llamacpp": "benchmarks.peers.adapters.llamacpp:LlamaCpp",
    "openvino": "benchmarks.peers.adapters.openvino:OpenVINO",
    "vllm": "benchmarks.peers.adapters.vllm:VLLM",
    "ctranslate2": "benchmarks.peers.adapters.ctranslate2:CTranslate2",
    "transformers": "benchmarks.peers.adapters.transformers:Transformers",
    "transformers-one": "benchmarks.peers.adapters.transformers:TransformersOneByOne",
}
"""Name on the command line -> where its class is; Quire first."""

DEFAULT_ADAPTERS = [name for name in ADAPTERS if name != "transformers-one"]
"""Requests one by one take many times as long as all peers together."""

KV_CACHE_BYTES = 1 << 30
"""Memory for keys and values where an engine asks: room for every workload."""
MAX_MODEL_LEN = 2048


class Adapter(Protocol):
    """An engine that holds one model at a time."""

    title: str
    formats: dict[str, str]
    """Precision -> what the engine computes with; a precision that is missing is not supported."""

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        """Variables that must be set before the engine's process starts."""

    def version(self) -> str:
        """Raises ImportError or FileNotFoundError where the engine is not installed."""

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        """Convert a Hugging Face checkpoint into what `load` takes, once; `folder` is the adapter's own."""

    def load(self, model: Path, precision: str, threads: int) -> None:
        """Load what `prepare` returned; once per process."""

    def run(self, workload: Workload) -> Figures:
        """Run all requests of a workload, arriving together, and time them."""


def load_adapter(place: str) -> type[Adapter]:
    """The adapter class at `module:Class`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def pinned_openmp(threads: int) -> dict[str, str]:
    """Variables that give each OpenMP thread a CPU of its own: threads that spin at barriers suffer when two share one."""
    variables = {"OMP_NUM_THREADS": str(threads)}
    if hasattr(os, "sched_getaffinity"):
        places = ",".join(f"{{{cpu}}}" for cpu in sorted(os.sched_getaffinity(0))[:threads])
        variables |= {"OMP_PROC_BIND": "true", "OMP_PLACES": places}
    return variables
