"""The layers and the four walls: the contracts in pyproject.toml where import-linter is installed, and in any case
an own reading of the sources that the torch-free part names no torch."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

_TREE = Path(__file__).parents[1]
_TORCH_FREE = ["errors", "envs", "log", "platform", "config", "sampling_params", "outputs", "batch", "core"]


def sources(part):
    single, package = _TREE / "quire" / f"{part}.py", _TREE / "quire" / part
    return [single] if single.exists() else sorted(package.rglob("*.py"))


def imported_names(path):
    """Top-level names of all imports in a file, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("part", _TORCH_FREE)
def test_the_thinking_part_names_no_torch(part):
    files = sources(part)
    assert files, f"quire/{part} is gone: change this list and the contracts"
    for path in files:
        assert not imported_names(path) & {"torch", "transformers"}, path


@pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter is not installed")
def test_contracts():
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", script], cwd=_TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
