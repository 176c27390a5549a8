"""docs/models.md: every architecture has a green row, and the page is what the results give."""

from __future__ import annotations

import json

import pytest

from quire.models import ModelRegistry, proven
from tests.models.shapes import THROUGH_TRANSFORMERS
from tests.quant.fixtures import FIXTURES
from tools import models_page
from tools.model_measures import cases

GREEN = {
    "architecture": "LlamaForCausalLM",
    "reference": "plain torch",
    "prompts": 16,
    "prompts_equal": 16,
    "near_ties": 1,
    "max_logprob_error": 2e-5,
    "int8_perplexity_ratio": 1.01,
    "int4_perplexity_ratio": 1.3,
    "same_in_every_schedule": True,
}


def test_the_page_is_what_the_results_give():
    text = models_page.PAGE.read_text()
    assert text == models_page.updated(text), "run: python -m tools.models_page --render"


def test_every_registered_architecture_has_a_green_row():
    assert models_page.missing_architectures() == [], "run: python -m tools.models_page --missing"


def test_so_have_those_that_prove_the_way_through_transformers():
    assert {name for name, _ in THROUGH_TRANSFORMERS.values()} <= proven.proven_architectures()


def test_every_result_is_of_a_checkpoint_that_there_is():
    known = {name: entry["architecture"] for name, entry in proven.read_proven()["architectures"].items()}
    assert known.items() <= {name: case.architecture for name, case in cases().items()}.items()
    assert set(proven.read_proven()["formats"]) == {fixture.name for fixture in FIXTURES}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"prompts_equal": 15}, "| 15 of 16 (1 to a near tie) |"),
        ({"max_logprob_error": 2e-4}, "| 2e-04 |"),
        ({"same_in_every_schedule": False}, "| **other bits** |"),
    ],
)
def test_what_is_not_as_it_must_be_is_red(changes, shown, tmp_path, monkeypatch):
    file = tmp_path / "proven.json"
    monkeypatch.setattr(proven, "FILE", file)
    entries = {"one": GREEN, "two": GREEN | {"architecture": "ArceeForCausalLM"}}
    file.write_text(json.dumps({"architectures": entries, "formats": {}}))
    assert proven.proven_architectures() == {"LlamaForCausalLM", "ArceeForCausalLM"}
    entries["one"] = GREEN | changes
    file.write_text(json.dumps({"architectures": entries, "formats": {}}))
    assert proven.proven_architectures() == {"ArceeForCausalLM"}
    rows = models_page.tables().splitlines()
    red = next(row for row in rows if row.startswith("| `LlamaForCausalLM` |"))
    assert shown in red and red.endswith("| **red** |")
    assert "LlamaForCausalLM" in models_page.missing_architectures()


def test_names_of_one_class_share_their_row(tmp_path, monkeypatch):
    file = tmp_path / "proven.json"
    monkeypatch.setattr(proven, "FILE", file)
    file.write_text(json.dumps({"architectures": {"one": GREEN}, "formats": {}}))
    rows = {row.split("`")[1]: row for row in models_page.tables().splitlines() if row.startswith("| `")}
    assert rows["LLaMAForCausalLM"] == rows["LlamaForCausalLM"].replace("LlamaFor", "LLaMAFor")
    assert rows["OPTForCausalLM"].endswith("| not measured |")
    known = set(ModelRegistry.get_supported_archs())
    assert set(models_page.missing_architectures()) == known - {"LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"}
