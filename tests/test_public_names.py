"""The package's public names, what importing it costs, and the module paths kept for vLLM's sake."""

from __future__ import annotations

import subprocess
import sys

import pytest

import quire

HEAVY = ("torch", "transformers", "tokenizers", "numpy", "zmq", "fastapi", "huggingface_hub")


def test_every_public_name_is_there():
    for name in quire.__all__:
        assert getattr(quire, name).__name__ == ("EngineArgs" if name == "AsyncEngineArgs" else name)
    assert set(quire.__all__) <= set(dir(quire))
    assert len(quire.__all__) == len(set(quire.__all__))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'LLMM'"):
        _ = quire.LLMM


@pytest.mark.parametrize(
    "statement",
    [
        "import quire",
        "from quire import EngineArgs, SamplingParams, RequestOutput, ConfigError",
        "from quire.config.engine_args import EngineArgs; import argparse; "
        "EngineArgs.add_cli_args(argparse.ArgumentParser())",
        "from quire.model_executor.models import ModelRegistry; ModelRegistry.get_supported_archs()",
    ],
)
def test_imports_stay_light(statement):
    program = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_side_of_an_engine_has_no_torch():
    program = (
        "import sys, quire.engine.async_engine, quire.engine.resolve\n"
        "print([name for name in ('torch', 'transformers', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_module_paths_of_vllm():
    import quire.engine.metrics as metrics
    from quire.model_executor.models import ModelRegistry

    assert "LlamaForCausalLM" in ModelRegistry.get_supported_archs()
    assert metrics.EngineStats().num_running == 0
