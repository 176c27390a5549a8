"""Nothing that comes from outside is unpickled or evaluated, and what processes say to each other nobody else can reach."""

from __future__ import annotations

import ast
import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

import quire
from quire.config.types import ParallelConfig
from quire.engine.process_client import ProcessClient
from tests.engine.fakes import make_config, write_byte_tokenizer

PACKAGE = Path(quire.__file__).parent
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
UNPICKLING_CALLS = {"recv_pyobj", "send_pyobj"}


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_nothing_is_unpickled() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            assert not imported(node) & PICKLERS, path
            assert called(node) not in UNPICKLING_CALLS, path
            if called(node) == "load" and ast.unparse(node).startswith("torch.load("):
                assert "weights_only=True" in ast.unparse(node), path
            if called(node) == "load" and ast.unparse(node).startswith(("np.load(", "numpy.load(")):
                assert "allow_pickle=True" not in ast.unparse(node), path


def test_nothing_is_evaluated() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in EVALUATORS, (path, node.lineno)


def test_the_engines_sockets_are_files_in_a_private_folder(tmp_path: Path) -> None:
    """And its process listens on no port."""
    config = make_config(write_byte_tokenizer(tmp_path))
    client = ProcessClient(dataclasses.replace(config, parallel=ParallelConfig(executor="simulated")))
    try:
        folder = client.folder.stat()
        assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, os.getuid())
        assert any(stat.S_ISSOCK(path.stat().st_mode) for path in client.folder.rglob("*"))
        connections = psutil.Process(client.pid).net_connections("inet")
        assert not [each for each in connections if each.status == psutil.CONN_LISTEN]
    finally:
        client.close(5.0)
