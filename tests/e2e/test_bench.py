"""`quire bench` over a small real model: every kind gives a result in which the tokens add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire.cli.main import main
from tests.e2e.server_process import ServerProcess


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["bench", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_serve(server: ServerProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = bench(
        capsys,
        "serve",
        "--base-url",
        server.url,
        "--num-prompts",
        "4",
        "--input-len",
        "12",
        "--output-len",
        "5",
        "--request-rate",
        "100",
        "--max-concurrency",
        "2",
        "--output-json",
        str(path),
    )
    assert (result["completed"], result["failed"]) == (4, 0)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (48, 20)
    assert result["model"] == "stories"
    assert 0 < result["median_ttft_ms"] <= result["median_e2el_ms"]
    assert result["mean_tpot_ms"] > 0
    assert json.loads(path.read_text()) == result


def test_serve_reports_failures(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "bench",
        "serve",
        "--base-url",
        server.url,
        "--endpoint",
        "/v1/nothing",
        "--num-prompts",
        "2",
        "--num-warmups",
        "0",
    ]
    assert main(words) == 1
    assert "route_not_found" in capsys.readouterr().err


def test_throughput(model_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(
        capsys, "throughput", model_path, "--num-prompts", "3", "--input-len", "9", "--output-len", "4"
    )
    assert (result["completed"], result["total_input_tokens"], result["total_output_tokens"]) == (3, 27, 12)
    assert result["output_throughput"] > 0


def test_latency(model_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(
        capsys,
        "latency",
        model_path,
        "--batch-size",
        "2",
        "--num-iters",
        "2",
        "--num-iters-warmup",
        "1",
        "--input-len",
        "8",
        "--output-len",
        "3",
    )
    assert result["avg_latency"] * 1000 == pytest.approx(result["mean_latency_ms"])
