"""`quire models`: every architecture with its families, what is proven, and the formats that the options know."""

from __future__ import annotations

import json

from quire.cli.main import main
from quire.config.quantization import QUANTIZED_CHECKPOINTS
from quire.models import ModelRegistry, proven


def test_it_lists_architectures_formats_and_what_is_proven(capsys, monkeypatch, tmp_path):
    green = {"prompts": 16, "prompts_equal": 16, "same_in_every_schedule": True}
    entries = {"a": green | {"architecture": "QWenLMHeadModel"}, "b": green | {"architecture": "CohereForCausalLM"}}
    entries["c"] = green | {"architecture": "OPTForCausalLM", "prompts_equal": 15}
    file = tmp_path / "proven.json"
    file.write_text(json.dumps({"architectures": entries, "formats": {"GPTQ 4-bit": {}}}))
    monkeypatch.setattr(proven, "FILE", file)
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    rows = {row.split()[0]: row.split(maxsplit=2)[1:] for row in printed.split("\n\n")[0].splitlines()[1:]}
    assert list(rows) == ModelRegistry.get_supported_archs()
    assert rows["QWenLMHeadModel"] == ["yes", "Qwen, the first"]
    assert rows["OPTForCausalLM"] == ["no", "OPT"]
    assert all(families for _, families in rows.values())
    assert "Proven: CohereForCausalLM." in printed
    assert "Measured: GPTQ 4-bit." in printed
    assert all(name in printed for name in ("safetensors", "int8", *QUANTIZED_CHECKPOINTS))


def test_a_class_of_a_plugin_is_listed(capsys, monkeypatch):
    class Plugged:
        pass

    monkeypatch.setattr("quire.models._registered", {"PluggedForCausalLM": Plugged})
    assert main(["models"]) == 0
    assert "PluggedForCausalLM" in capsys.readouterr().out
