"""What the package promises to pip and to a plain `import quire`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import quire

_TREE = Path(__file__).parents[1]
_HEAVY = {"torch", "transformers", "numpy", "fastapi"}


def modules_after(statement):
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    script = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=_TREE, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_version_is_the_same_in_both_places():
    project = tomllib.loads((_TREE / "pyproject.toml").read_text())["project"]
    assert project["version"] == quire.__version__


@pytest.mark.parametrize("statement", ["import quire", "import quire.config, quire.core, quire.platform"])
def test_importing_is_light(statement):
    assert not modules_after(statement) & _HEAVY


def test_the_console_script_points_at_a_function():
    main = pytest.importorskip("quire.cli.main", exc_type=ImportError)
    project = tomllib.loads((_TREE / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"quire": "quire.cli.main:main"}
    assert callable(main.main)


def test_the_command_starts_light():
    pytest.importorskip("quire.cli.main", exc_type=ImportError)
    assert not modules_after("import quire.cli.main") & {"torch", "transformers"}
