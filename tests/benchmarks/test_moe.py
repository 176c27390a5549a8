"""The benchmark of a mixture of experts, on a shape that takes no time: it runs, as a program, and counts what is read."""

from __future__ import annotations

import json

import pytest

from benchmarks import moe
from quire.ops import cpu


@pytest.mark.skipif(cpu.load()[0] is None, reason="no C++ kernels")
def test_it_runs_and_counts(tmp_path, capsys):
    file = tmp_path / "moe.json"
    options = [
        "--formats",
        "int8/64",
        "int4-32/64",
        "--tokens",
        "1",
        "40",
        "--seconds",
        "0",
        "--threads",
        "1",
    ]
    moe.main(["--shapes", "T", *options, "--json", str(file)])
    report = json.loads(file.read_text())
    assert [row["name"] for row in report["rows"]] == [
        *("T int8/64 T=1", "T int8/64 T=40"),
        *("T int4-32/64 T=1", "T int4-32/64 T=40"),
    ]
    assert all(
        row["how"] == "program" and row["fraction"] > 0 and row["of_dense"] > 0 for row in report["rows"]
    )
    one, many = report["rows"][:2]
    expert = 3 * 64 * 96
    assert one["bytes"] == 2 * expert and many["bytes"] == 5 * expert
    assert one["operations"] == 2 * 2 * expert and many["operations"] == 40 * one["operations"]
    assert "T int4-32/64 T=40 | program | 5.0 experts" in capsys.readouterr().out
