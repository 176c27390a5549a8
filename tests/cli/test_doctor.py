"""`quire doctor`: the report is complete, readable and valid JSON."""

from __future__ import annotations

import argparse
import builtins
import json

import pytest

from quire.cli import doctor
from quire.ops import cpu


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    return parser


def test_json_names_everything(parser, capsys):
    args = parser.parse_args(["doctor", "--json"])
    assert args.run(args) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"software", "cpu", "memory", "gpus", "kernels", "ops"}
    assert report["cpu"]["threads"] >= 1
    assert report["kernels"]["built"] is cpu.status().built
    assert report["ops"]["cpu"]["rms_norm"] == ("cpu" if report["kernels"]["built"] else "reference")


@pytest.mark.skipif(not cpu.status().built, reason="no C++ kernels")
def test_bench_measures_one_thread_and_all(parser, monkeypatch, capsys):
    from quire.ops.cpu import roofline

    monkeypatch.setattr(roofline, "_default_memory_bytes", lambda: 8 << 20)
    monkeypatch.setenv("QUIRE_NUM_THREADS", "2")
    args = parser.parse_args(["doctor", "--bench", "--json"])
    assert args.run(args) == 0
    measured = json.loads(capsys.readouterr().out)["roofline"]
    assert [peak["threads"] for peak in measured] == [1, 2]
    for peak in measured:
        assert all(peak[name] > 0 for name in ("read", "cache_read", "float32", "int8"))


def test_the_roofline_is_shown_in_units_of_its_own():
    one = dict(threads=1, read=30e9, cache_read=98.76e9, float32=117e9, int8=468e9, bfloat16=None)
    text = dict(doctor._roofline_rows([one, one | dict(threads=2, read=34e9)]))
    assert text["threads"] == "1 / 2"
    assert text["memory read"] == "30.0 / 34.0 GB/s"
    assert text["float32"] == "117.0 / 117.0 GFLOP/s"
    assert text["int8"] == "468.0 / 468.0 GOP/s"
    assert "bfloat16" not in text
    assert doctor._roofline_rows([]) == []


def test_text_has_a_section_per_topic(parser, capsys):
    args = parser.parse_args(["doctor"])
    assert args.run(args) == 0
    text = capsys.readouterr().out
    for title in ("Software", "CPU", "Memory", "GPU", "C++ kernels", "Ops on cpu"):
        assert f"\n{title}\n" in f"\n{text}"


def test_it_says_why_the_kernels_are_not_built(monkeypatch):
    monkeypatch.setattr(cpu, "status", lambda: cpu.Status(built=False, reason="no compiler"))
    text = doctor.render(doctor.collect())
    assert "no: no compiler" in text
    assert "instruction level" not in text


def test_a_broken_torch_is_reported_not_raised(parser, monkeypatch, capsys):
    real_import = builtins.__import__

    def no_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("libtorch.so: cannot open shared object file")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    args = parser.parse_args(["doctor"])
    assert args.run(args) == 1
    assert "cannot be imported: libtorch.so" in capsys.readouterr().out
