"""`quire run-batch` as a command: its answers are those of a server, and its mistakes are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}),
    ("/v1/completions", {"prompt": ["Once", "The"], "max_tokens": 8, "seed": 3, "n": 2, "logprobs": 1}),
    ("/v1/completions", {"prompt": "x", "temperature": 9}),
]  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quire", "run-batch", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )


def test_results_equal_the_servers(folio_server: ServerProcess, tmp_path: Path) -> None:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": url, "body": body}
        for number, (url, body) in enumerate(REQUESTS)
    ]
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    requests.write_text("\n".join(map(json.dumps, lines)) + "\n")
    done = run("-i", str(requests), "-o", str(answers), "--model", "folio", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert "3 requests answered, 1 with an error" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    for text, (url, body) in zip(answers.read_text().splitlines(), REQUESTS):
        response = json.loads(text)["response"]
        served = httpx.post(folio_server.url + url, json=body, timeout=60)
        assert response["status_code"] == served.status_code
        for name in ("choices", "error"):
            assert response["body"].get(name) == served.json().get(name)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], "input_file"),
        (["-i", "requests.jsonl"], "output_file"),
        (["-i", "https://example.org/x", "-o", "y"], "input_file"),
        (["-i", "/no/such/file", "-o", "/no/such/folder/y"], "input_file cannot be read"),
    ],
)
def test_mistakes_are_one_line(words: list[str], names: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert names in done.stderr
