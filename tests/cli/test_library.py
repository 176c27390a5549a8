"""`quire pull | list | ps | ...` as far as they need no server: addresses, tables, and a pull without one."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from quire.cli.address import DEFAULT_HOST, DEFAULT_PORT, parse_address
from quire.cli.library.ps import _row
from quire.cli.library.text import ago, size, table
from quire.cli.main import build_parser
from quire.cli.serve import _fill_in_environment
from quire.errors import ConfigError
from quire.server.args import ServerArgs
from tests.server.fake_hub import FakeHub


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("example.org", "http://example.org:8000"),
        ("example.org:5", "http://example.org:5"),
        (":5", "http://127.0.0.1:5"),
        ("0.0.0.0:5", "http://127.0.0.1:5"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org/base/", "https://example.org:443/base"),
        ("HTTPS://example.org:5", "https://example.org:5"),
        ("[::1]:5", "http://[::1]:5"),
        ("[::]", "http://[::1]:8000"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert parse_address(text).url == url


@pytest.mark.parametrize("text", ["host:port", "ftp://host", "a b", "host:99999", "[::1"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="an address must be"):
        parse_address(text)


def test_the_defaults_are_the_servers() -> None:
    assert (ServerArgs().host, ServerArgs().port) == (DEFAULT_HOST, DEFAULT_PORT)


def serve_args(*words: str) -> argparse.Namespace:
    args = build_parser("serve").parse_args(["serve", *words])
    _fill_in_environment(args)
    return args


def test_what_the_environment_says_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUIRE_HOST", "OLLAMA_HOST", "QUIRE_MODELS", "OLLAMA_MODELS", "OLLAMA_ORIGINS"):
        monkeypatch.delenv(name, raising=False)
    args = serve_args()
    assert (args.host, args.port, args.models_dir, args.allowed_origins) == (DEFAULT_HOST, DEFAULT_PORT, None, None)
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:11434")
    monkeypatch.setenv("OLLAMA_MODELS", "/models")
    monkeypatch.setenv("OLLAMA_ORIGINS", "http://a, http://b")
    args = serve_args()
    assert (args.host, args.port, args.models_dir) == ("0.0.0.0", 11434, "/models")
    assert args.allowed_origins == ["http://a", "http://b"]
    args = serve_args("folio", "--host", "127.0.0.1", "--allowed-origins", "http://c")
    assert (args.host, args.port, args.models_dir) == ("127.0.0.1", 11434, None)  # a model given: that one alone
    assert args.allowed_origins == ["http://c"]
    monkeypatch.setenv("QUIRE_HOST", ":9")
    assert serve_args().port == 9


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (999_999, "1.0 MB"), (4_700_000_000, "4.7 GB"), (47 * 10**9, "47 GB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-01-01T11:59:30Z", "less than a minute ago"),
        ("2026-01-01T11:58:59.123456789Z", "1 minute ago"),
        ("2026-01-01T10:00:00+00:00", "2 hours ago"),
        ("2025-12-01T12:00:00Z", "1 month ago"),
        ("2026-01-01T12:04:59Z", "4 minutes from now"),
    ],
)
def test_times(moment: str, text: str) -> None:
    assert ago(moment, datetime.fromisoformat("2026-01-01T12:00:00+00:00")) == text


def test_table() -> None:
    assert table(["A", "BB"], [["long", "x"], ["y", ""]]) == "A       BB\nlong    x\ny"


@pytest.mark.parametrize(
    ("on_gpu", "shown"), [(0, "100% CPU"), (200, "100% GPU"), (50, "75%/25% CPU/GPU")]
)
def test_the_processor_of_a_loaded_model(on_gpu: int, shown: str) -> None:
    model = {"name": "a:latest", "digest": "0" * 64, "size": 200, "size_vram": on_gpu, "context_length": 64}
    row = _row(model | {"expires_at": "9999-12-31T23:59:59Z"})
    assert row == ["a:latest", "0" * 12, "200 B", shown, "64", "Forever"]


def test_pull_without_a_server(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": bytes(2000)}
    hub = FakeHub("owner/tiny", files)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "QUIRE_MODELS": str(tmp_path)}
    for name in ("QUIRE_HOST", "OLLAMA_HOST", "HF_HUB_OFFLINE"):
        environment.pop(name, None)

    def quire(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quire", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    try:
        done = quire("pull", "owner/tiny", "--models-dir", str(tmp_path / "new"))
        assert done.returncode == 0, done.stderr
        assert {file.name for file in (tmp_path / "new/owner/tiny").iterdir()} == set(files)
        lines = done.stdout.splitlines()
        assert lines[0] == "pulling manifest" and lines[-2] == "success" and str(tmp_path / "new") in lines[-1]
        assert any(line.endswith("(2.0 KB)") for line in lines)
        done = quire("pull", "owner/other", "--models-dir", str(tmp_path))
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "owner/other" in done.stderr
        environment["QUIRE_HOST"] = "127.0.0.1:9"
        done = quire("pull", "owner/tiny")
        assert done.returncode == 2 and "127.0.0.1:9" in done.stderr
    finally:
        hub.close()
