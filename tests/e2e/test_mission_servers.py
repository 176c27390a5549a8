"""The mission's ways to start a server, and the client programs printed beside them, run as they are printed.

Names are changed: the package, the model, the port. What runs without a server of its own is in `test_mission_snippets.py`.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server_process import ServerProcess

CLIENT = """
import openai

client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="token-abc123")

completion = client.chat.completions.create(
    model="meta-llama/Llama-2-7b-chat-hf",
    messages=[
        {"role": "user", "content": "What is the capital of France?"}
    ]
)

print(completion.choices[0].message.content)
client.close()
"""

STREAM = """
import openai
client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="EMPTY")

response = client.chat.completions.create(
    model="meta-llama/Llama-2-7b-chat-hf",
    messages=[{"role": "user", "content": "Count from 1 to 10"}],
    stream=True,
    temperature=0.7
)
for chunk in response:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
client.close()
"""

REQUESTS = """
import requests
import json

url = "http://localhost:8000/v1/completions"
headers = {"Content-Type": "application/json"}
data = {
    "model": "meta-llama/Llama-2-7b-chat-hf",
    "prompt": "人工智能的未来发展趋势是什么?",
    "max_tokens": 100,
    "temperature": 0.7
}

response = requests.post(url, headers=headers, data=json.dumps(data))
print(response.json())
"""

SERVE = """
from quire.entrypoints.openai import serve_openai_api

serve_openai_api(
    model="folio",
    host="0.0.0.0",
    port=0
)
"""


def run(program: str, url: str) -> None:
    """Run a printed program against a server."""
    text = program.replace("http://localhost:8000", url).replace("meta-llama/Llama-2-7b-chat-hf", "folio")
    exec(compile(text, "<printed>", "exec"), {})


@pytest.fixture(scope="module")
def served_from_python() -> Iterator[ServerProcess]:
    process = ServerProcess(program=SERVE)
    yield process
    process.kill()


@pytest.mark.parametrize("program", [CLIENT, STREAM, REQUESTS], ids=["client", "stream", "requests"])
def test_the_command_and_its_programs(
    folio_server: ServerProcess, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(program, folio_server.url)
    printed = capsys.readouterr().out
    assert printed.strip()
    assert "error" not in printed


def test_served_from_python(served_from_python: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    run(REQUESTS, served_from_python.url)
    printed = capsys.readouterr().out
    assert "'object': 'text_completion'" in printed and "'completion_tokens': " in printed


def test_a_key_and_a_certificate(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=str(certificate))
    with ServerProcess(
        "--model", "folio", "--api-key", "your-secret-key", "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate),
        command=["quire.entrypoints.openai.api_server"],
    ) as server, httpx.Client(verify=trust) as http:  # fmt: skip
        assert server.url.startswith("https://")

        def ask(api_key: str) -> str:
            client = openai.OpenAI(
                base_url=f"{server.url}/v1", api_key=api_key, http_client=http, max_retries=0
            )
            return client.completions.create(model="folio", prompt="Once", max_tokens=2).choices[0].text

        assert ask("your-secret-key")
        with pytest.raises(openai.AuthenticationError) as wrong:
            ask("another-key")
        assert wrong.value.code == "invalid_api_key"
        assert "your-secret-key" not in str(wrong.value)
