"""A folder of small models: three with random weights and folio's tokenizer, and folio."""

from __future__ import annotations

import shutil
from pathlib import Path

from quire.config.engine_args import EngineArgs
from quire.loader import resolve_model
from quire.server.model_loader import EngineLoader
from quire.server.models_dir import ModelsDir
from tests.models.checkpoints import make_model, save

RANDOM = {"tiny-llama": "llama-gqa-tied-llama3rope", "tiny:v3": "qwen3-gqa-tied", "team/mistral": "mistral-window"}
KV_BYTES = 8 * 2**20
OPTIONS = ("--kv-cache-memory-bytes", str(KV_BYTES))


def make_models_folder(root: Path) -> Path:
    """Write the models; returns `root`."""
    folio = Path(resolve_model("folio"))
    shutil.copytree(folio, root / "folio")
    for name, shape in RANDOM.items():
        save(make_model(shape, vocab_size=4096, eos_token_id=2), root / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folio / file, root / name / file)
    return root


def memory_of(root: Path, name: str) -> int:
    """What the server counts for a model."""
    loader = EngineLoader(EngineArgs(kv_cache_memory_bytes=KV_BYTES), memory_bytes=2**40)
    return loader.plan(ModelsDir(root).find(name)).num_bytes


def room_for_two(root: Path) -> int:
    """A memory limit under which any two of the models fit, and no three."""
    sizes = sorted(memory_of(root, name) for name in ModelsDir(root).names())
    limit = sizes[-1] + sizes[-2]
    assert sum(sizes[:3]) > limit
    return limit
