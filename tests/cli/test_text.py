"""`quire run` and `quire chat` over a small real model."""

from __future__ import annotations

import pytest

from tests.cli.test_main import run
from tests.shared_data import shared

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def model() -> str:
    return str(shared("models/stories260K"))


def test_run_continues_a_text(model: str) -> None:
    done = run("run", model, "Once upon a time", "--temperature", "0", "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(", there was a little girl named Lily")
    assert "Traceback" not in done.stderr


def test_run_reads_standard_input(model: str) -> None:
    done = run("run", model, "-", "--temperature", "0", "--max-tokens", "12", stdin="Once upon a time\n")
    assert done.stdout.startswith(", there was a little girl named Lily")


def test_chat_over_a_pipe(model: str) -> None:
    lines = "Once upon a time\n/nonsense\n/reset\nOnce upon a time\n/exit\nnot read\n"
    done = run(
        "chat", model, "--chat-template", TEMPLATE, "--temperature", "0", "--max-tokens", "6", stdin=lines
    )
    assert done.returncode == 0, done.stderr
    first, hint, reset, second = done.stdout.splitlines()
    assert first == second != ""
    assert hint.startswith("/reset")
    assert reset == "(new conversation)"


def test_chat_needs_a_template(model: str) -> None:
    done = run("chat", model)
    assert done.returncode == 2
    assert "--chat-template" in done.stderr


def test_a_folder_alone_is_the_model(model: str) -> None:
    done = run("run", model, "--temperature", "0", "--max-tokens", "12", stdin="Once upon a time")
    assert done.stdout.startswith(", there was a little girl named Lily")
