"""`quire quantize` as a whole: Quire and transformers read what it writes as the same numbers, and it costs little quality."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quire.cli.main import main
from quire.config.engine_args import QUANTIZATIONS_AT_LOAD
from quire.config.hf import load_hf_config
from quire.config.quantization import settle_quantization
from quire.loader.hub import resolve_model
from tests.loader.test_quantized import load
from tests.models.checkpoints import weights_of

pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("QUIRE_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A few of the documents that folio has learned from."""
    from tools.folio.generate import stream

    file = tmp_path_factory.mktemp("texts") / "folio.jsonl"
    lines = []
    for document in islice(stream(77), 128):
        chat = {"messages": [{"role": turn.role, "content": turn.text} for turn in document.turns]}
        lines.append(json.dumps(chat if document.turns else {"text": document.text}))
    file.write_text("\n".join(lines))
    return file


def quantize(folder, texts, *options: str, samples: int = 2) -> int:
    calibration = [] if texts is None else ["--calibration", str(texts), "--num-samples", str(samples)]
    return main(["quantize", "folio", "-o", str(folder), *calibration, *options])


@pytest.mark.parametrize(
    "options",
    [("--method", "gptq"), ("--method", "awq", "--group-size", "32")],
    ids=lambda options: options[1],
)
def test_quire_and_transformers_read_the_same_weights(options, tmp_path, texts, capsys):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    assert quantize(tmp_path, texts, *options) == 0
    assert "perplexity of the calibration text" in capsys.readouterr().out
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and "lm_head" in config["ignore"]
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=torch.float32
    ).state_dict()
    mine = load(tmp_path)
    found = weights_of(mine)
    layer = "model.layers.3."
    for name, parts in {
        "self_attn.qkv_proj": [f"self_attn.{x}_proj" for x in "qkv"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }.items():
        expected = torch.cat([theirs[f"{layer}{part}.weight"] for part in parts])
        torch.testing.assert_close(found[f"{layer}{name}.weight"], expected, rtol=1e-2, atol=1e-6)
    assert {layer.mlp.down_proj.weight.format.name for layer in mine.model.layers} == {"int4"}
    assert settle_quantization("compressed-tensors", load_hf_config(tmp_path).quantization, QUANTIZATIONS_AT_LOAD) is None


@pytest.mark.slow
def test_awq_and_gptq_beat_rounding_to_nearest(tmp_path, texts):
    """folio's exact answers to held-out phrasings, and the perplexity of the right answers."""
    from benchmarks.quality import measure_folio

    found = {}
    for method in ("rtn", "awq", "gptq"):
        assert quantize(tmp_path / method, texts, "--method", method, samples=128) == 0
        found[method] = measure_folio({}, every=4, model=str(tmp_path / method))
    for method in ("awq", "gptq"):
        assert found[method]["folio_perplexity"] < found["rtn"]["folio_perplexity"]
        assert found[method]["folio_accuracy"] > found["rtn"]["folio_accuracy"]


def test_awq_leaves_the_model_as_it_was(tmp_path, texts, capsys):
    """Norms and weights change together: with 8 bits so little is lost that a factor which went astray would be seen."""
    assert quantize(tmp_path, texts, "--method", "awq", "--bits", "8") == 0
    found, original = load_file(tmp_path / "model.safetensors"), load_file(Path(resolve_model("folio")) / "model.safetensors")
    norm = "model.layers.0.input_layernorm.weight"
    assert found["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert not torch.equal(found[norm], original[norm])
    line = next(line for line in capsys.readouterr().out.splitlines() if "perplexity" in line)
    ratio = float(line.split("(")[1].rstrip(")"))
    assert ratio == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "gptq"), "give calibration, a file of text: method gptq needs to see"),
        (("--method", "rtn", "--bits", "3"), "bits must be 4 or 8, got 3"),
        (("--method", "rtn", "--group-size", "100"), "group_size must be 32, 64, 128, or 0 for whole rows, got 100"),
        (("--method", "awq", "--calibration", "/nowhere"), "calibration /nowhere cannot be read"),
        (("--method", "awq", "--calibration", "/nowhere", "--num-samples", "0"), "num_samples must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options, message, tmp_path, capsys):
    assert quantize(tmp_path / "out", None, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_folder_and_a_quantized_checkpoint_are_refused(tmp_path, capsys):
    assert quantize(tmp_path, None, "--method", "rtn") == 0
    assert quantize(tmp_path, None, "--method", "rtn") == 2
    assert "output must be a folder that is not there or empty" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path), "--method", "rtn", "-o", str(tmp_path / "again")]) == 2
    assert "is quantized by compressed-tensors already" in capsys.readouterr().err
