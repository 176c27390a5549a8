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
