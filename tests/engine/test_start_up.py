"""What an engine does not load when it starts."""

from __future__ import annotations

import subprocess
import sys


def test_an_engine_starts_without_dynamo() -> None:
    """torch's compiler takes as long to import as everything else together."""
    code = (
        "import sys; from quire import LLM; LLM('folio', kv_cache_memory_bytes=2**23);"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
