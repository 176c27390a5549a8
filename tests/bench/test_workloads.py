"""Workloads: the same seed gives the same requests, lengths are those asked for, traces share their prefixes."""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from quire.bench.workloads import add_workload_arguments, fit_to_context, make_workload, poisson_arrivals
from quire.errors import ConfigError
from tests.shared_data import shared


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_workload_arguments(parser)
    return parser.parse_args(words)


def test_fixed_lengths() -> None:
    requests = make_workload(
        parse("--dataset-name", "fixed", "--num-prompts", "5", "--input-len", "7", "--output-len", "3")
    )
    assert [(len(request.prompt_token_ids), request.output_len) for request in requests] == [(7, 3)] * 5
    assert len({tuple(request.prompt_token_ids) for request in requests}) == 5


def test_seeds() -> None:
    words = ("--num-prompts", "5", "--range-ratio", "0.5")
    assert make_workload(parse(*words)) == make_workload(parse(*words))
    assert make_workload(parse(*words)) != make_workload(parse(*words, "--seed", "1"))


def test_ranges_and_prefix() -> None:
    requests = make_workload(
        parse("--num-prompts", "50", "--input-len", "100", "--range-ratio", "0.2", "--prefix-len", "9")
    )
    lengths = [len(request.prompt_token_ids) - 9 for request in requests]
    assert 80 <= min(lengths) < max(lengths) <= 120
    assert len({tuple(request.prompt_token_ids[:9]) for request in requests}) == 1


def test_fitting_to_a_context() -> None:
    requests = make_workload(parse("--num-prompts", "2", "--input-len", "100", "--output-len", "30"))
    fitted = fit_to_context(requests, 64)
    assert [(len(request.prompt_token_ids), request.output_len) for request in fitted] == [(34, 30)] * 2


def test_arrivals() -> None:
    times = poisson_arrivals(1000, 10.0, seed=0)
    gaps = [after - before for before, after in pairwise(times)]
    assert times[0] == 0 and min(gaps) > 0
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.2)
    assert poisson_arrivals(3, float("inf"), seed=0) == [0.0] * 3


def test_a_json_trace(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 1500, "input_length": 700, "output_length": 6, "hash_ids": [1, 3]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = make_workload(parse("--dataset-name", "mooncake", "--dataset-path", str(path)))
    assert (len(first.prompt_token_ids), first.output_len, first.arrival_s) == (600, 5, 0.0)
    assert (len(second.prompt_token_ids), second.output_len, second.arrival_s) == (700, 6, 1.5)
    assert first.prompt_token_ids[:512] == second.prompt_token_ids[:512]
    assert first.prompt_token_ids[512:600] != second.prompt_token_ids[512:600]


def test_a_broken_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="mooncake trace"):
        make_workload(parse("--dataset-name", "mooncake", "--dataset-path", str(path)))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("mooncake", "mooncake_conversation.jsonl"),
        ("sharegpt-lengths", "sharegpt_lengths.jsonl"),
        ("azure", "azure_llm_2023_conv.csv"),
    ],
)
def test_real_traces(dataset: str, name: str) -> None:
    path = shared(f"traces/{name}")
    requests = make_workload(
        parse(
            "--dataset-name",
            dataset,
            "--dataset-path",
            str(path),
            "--num-prompts",
            "20",
            "--max-input-len",
            "900",
        )
    )
    assert len(requests) == 20
    assert all(1 <= len(request.prompt_token_ids) <= 900 and request.output_len >= 1 for request in requests)
    assert [request.arrival_s for request in requests] == sorted(request.arrival_s for request in requests)
