"""A server in a process of its own over a small real model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.server_process import ServerProcess
from tests.shared_data import shared

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Once upon a time{% endif %}"
)


@pytest.fixture(scope="session")
def model_path() -> str:
    """A trained model of 260 thousand parameters."""
    return str(shared("models/stories260K"))


@pytest.fixture(scope="session")
def server_words(model_path: str) -> tuple[str, ...]:
    """What a server of that model is started with."""
    return (model_path, "--served-model-name", "stories", "also/stories", "--chat-template", TEMPLATE)


@pytest.fixture(scope="session")
def server(server_words: tuple[str, ...]) -> Iterator[ServerProcess]:
    """One server for the tests that leave it running."""
    process = ServerProcess(*server_words)
    yield process
    process.kill()


@pytest.fixture(scope="session")
def folio_server() -> Iterator[ServerProcess]:
    """The built-in model, which answers simple questions, started by the command that users of vLLM know."""
    process = ServerProcess(
        "--model", "folio", "--dtype", "float16", "--max-model-len", "1024", "--gpu-memory-utilization", "0.95",
        "--max-num-seqs", "128", command=["quire.entrypoints.openai.api_server"],
    )  # fmt: skip
    yield process
    process.kill()
