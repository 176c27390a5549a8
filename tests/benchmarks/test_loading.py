"""The benchmark of loading runs from end to end, on a checkpoint of a few megabytes."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import loading
from benchmarks.shapes import make_checkpoint
from quire.loader.formats import read_weights


@pytest.mark.parametrize("num_shards", [1, 3, 21])
def test_every_form_holds_the_same_tensors(tmp_path, num_shards):
    whole = make_checkpoint("T", tmp_path)
    forms = loading.write_forms(whole, tmp_path / "forms", num_shards)
    assert len(list(forms["shards"].glob("*.safetensors"))) == num_shards
    expected = load_file(whole / "model.safetensors")
    assert len(expected) == 21
    for folder in forms.values():
        found = dict(read_weights(str(folder)))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_shards_are_about_alike():
    tensors = {str(i): torch.empty(10 + i % 3, dtype=torch.uint8) for i in range(40)}
    shards = loading.divide(tensors, 4)
    assert [name for names in shards for name in names] == list(tensors)
    assert all(98 <= sum(tensors[name].nbytes for name in names) <= 122 for names in shards)


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path):
    args = argparse.Namespace(shape="T", dtype="float32", shards=3, cold=True, repeat=1, to=None)
    results = loading.run(args, tmp_path)
    assert results.keys() == loading.ROWS.keys()
    assert results["quire"]["time_ratio"] == 1.0
    lines = loading.table(results).splitlines()
    assert len(lines) == 2 + len(loading.ROWS) and {line.count("|") for line in lines} == {6}
    assert "Llama" not in loading.title(args) and "smoke test in float32" in loading.title(args)
