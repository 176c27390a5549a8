"""benchmarks.kernels on a tiny model: every kernel gives a row, and the fractions follow from bytes, operations and time."""

from __future__ import annotations

import json

import pytest

from quire.ops import cpu

if not cpu.status().built:
    pytest.skip("no C++ kernels", allow_module_level=True)

from benchmarks.kernels import __main__ as benchmark
from benchmarks.kernels.measure import Row, Work
from quire.ops.cpu.roofline import Roofline


@pytest.fixture
def roofline():
    return Roofline(threads=1, read=10.0, cache_read=100.0, float32=20.0, int8=40.0, bfloat16=None)


@pytest.mark.parametrize(
    "work, roof, fraction",
    [
        (Work(num_bytes=50, operations=20), "memory", 0.5),
        (Work(num_bytes=50, operations=20, cached=True), "float32", 0.1),
        (Work(num_bytes=50, operations=0, cached=True), "cache", 0.05),
        (Work(num_bytes=1, operations=200, peak="int8"), "int8", 0.5),
        (Work(num_bytes=1, operations=100, peak="bfloat16"), "float32", 0.5),
    ],
)
def test_the_fraction_is_the_least_possible_time_over_the_measured_one(roofline, work, roof, fraction):
    compared = Row("linear", "T", "case", "op", work, seconds=10.0).compare(roofline)
    assert compared["roof"] == roof
    assert compared["fraction"] == pytest.approx(fraction)


@pytest.mark.slow
def test_every_kernel_gives_rows(tmp_path, capsys):
    path = tmp_path / "kernels.json"
    arguments = "--shapes T --rows 1 3 --contexts 32 48 --seconds 0 --threads 1 --formats float32 int8/128 int4-32/128"
    benchmark.main([*arguments.split(), "--json", str(path)])
    report = json.loads(path.read_text())
    assert {row["kernel"] for row in report["rows"]} == {
        "linear",
        "attention",
        "rms_norm",
        "silu_and_mul",
        "rotary",
        "sampler",
    }
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in report["rows"])
    assert len(report["long_context"]) == 3
    table = capsys.readouterr().out
    assert table.count("| linear |") == 5 * 3 * 2  # matrices, formats, rows
