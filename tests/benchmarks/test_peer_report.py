"""Medians, the best peer, ratios, and the table, JSON and chart that show them."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers.chart import draw_chart
from benchmarks.peers.report import render_report, render_table
from benchmarks.peers.results import (
    Measurement,
    append_measurement,
    as_json,
    failures,
    make_rows,
    num_noisy,
    read_measurements,
)

TITLES = {"quire": "Quire", "llamacpp": "llama.cpp", "openvino": "OpenVINO GenAI"}
ABOUT = {
    "date": "2026-01-02",
    "machine": {"processor": "abacus", "cpus": "2"},
    "threads": 2,
    "scale": 4,
    "peers": {
        name: {"title": title, "version": "1", "formats": {"int8": name[:2]}}
        for name, title in TITLES.items()
    },
    "left_out": {"vllm": "not installed"},
}


def measure(peer, round_, decode, ttft):
    figures = {"decode_tokens_per_s": decode, "ttft_ms": ttft}
    return Measurement("S", "int8", "W1", round_, peer, figures, neighbours=0.01)


MEASUREMENTS = [
    measure("quire", 0, 30.0, 200.0),
    measure("llamacpp", 0, 20.0, 900.0),
    measure("openvino", 0, 24.0, 300.0),
    measure("quire", 1, 36.0, 100.0),
    measure("llamacpp", 1, 26.0, 1100.0),
    Measurement("S", "int8", "W1", 1, "openvino", error="it\nbroke", neighbours=0.5),
]


def test_medians_and_ratios():
    decode, ttft = make_rows(MEASUREMENTS)
    assert decode.medians == {"quire": 33.0, "llamacpp": 23.0, "openvino": 24.0}
    assert (decode.best_peer, decode.ratio) == ("openvino", 33.0 / 24.0)
    assert ttft.medians == {"quire": 150.0, "llamacpp": 1000.0, "openvino": 300.0}
    assert (ttft.best_peer, ttft.ratio) == ("openvino", 2.0)  # half the time is twice as good


def test_no_ratio_without_both_sides():
    alone = make_rows(MEASUREMENTS[:1])[0]
    assert (alone.best_peer, alone.ratio) == (None, None)
    assert make_rows(MEASUREMENTS[1:3])[0].ratio is None


def test_table():
    lines = render_table(make_rows(MEASUREMENTS), TITLES).splitlines()
    assert (
        lines[0]
        == "| workload | figure | precision | Quire | llama.cpp | OpenVINO GenAI | Quire / best peer |"
    )
    assert lines[2] == "| W1 | decode, tok/s | int8 | 33.0 | 23.0 | 24.0 | 1.38 x OpenVINO GenAI |"
    assert lines[3] == "| W1 | time to first token, ms | int8 | 150 | 1,000 | 300 | 2.00 x OpenVINO GenAI |"


def test_precisions_of_one_figure_stand_together():
    other = [Measurement("S", "int4", "W1", 0, "quire", {"decode_tokens_per_s": 1.0, "ttft_ms": 1.0})]
    lines = render_table(make_rows(MEASUREMENTS + other), TITLES).splitlines()[2:]
    assert [line.split(" | ")[1:3] for line in lines] == [
        ["decode, tok/s", "int8"], ["decode, tok/s", "int4"],
        ["time to first token, ms", "int8"], ["time to first token, ms", "int4"],
    ]  # fmt: skip
    assert lines[1] == "| W1 | decode, tok/s | int4 | 1.0 |  |  |  |"


def test_report_says_how_it_was_measured():
    report = render_report(ABOUT, MEASUREMENTS)
    assert "Rounds, interleaved: 2" in report and "2 threads" in report
    assert "during 1 of 6 measurements" in report and "shortened by 4" in report
    assert "## S: the shape of Qwen2.5-0.5B" in report
    assert "- openvino, S, int8, W1: it broke" in report and "- vllm: not installed" in report


def test_failures_and_noise():
    assert failures(MEASUREMENTS * 2) == ["openvino, S, int8, W1: it\nbroke"]
    assert num_noisy(MEASUREMENTS) == 1


def test_measurements_survive_a_file(tmp_path):
    path = tmp_path / "measurements.jsonl"
    assert read_measurements(path) == []
    for measurement in MEASUREMENTS:
        append_measurement(path, measurement)
    assert read_measurements(path) == MEASUREMENTS


def test_json_has_medians_and_raw_values():
    result = json.loads(json.dumps(as_json(ABOUT, MEASUREMENTS)))
    assert result["rows"][0]["quire_to_best_peer"] == 33.0 / 24.0
    assert result["rows"][0]["values"]["quire"] == [30.0, 36.0]
    assert len(result["measurements"]) == 6 and result["threads"] == 2


def test_chart(tmp_path):
    pytest.importorskip("matplotlib")
    draw_chart(make_rows(MEASUREMENTS), TITLES, tmp_path / "chart.svg")
    assert "<svg" in (tmp_path / "chart.svg").read_text()
