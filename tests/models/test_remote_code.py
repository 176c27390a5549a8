"""Code that comes with a checkpoint: it runs under trust_remote_code where nobody else has the class, and never otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from quire import LLM
from quire.config.engine_args import EngineArgs
from quire.engine.resolve import read_model
from quire.errors import ConfigError, UnsupportedModelError
from quire.executor.local import LocalExecutor
from quire.tokenizer.load import load_tokenizer
from tests.models.checkpoints import draw_prompts, greedy, make_model, same_or_near_tie, save
from tests.models.drive import Driver, make_config
from tests.models.test_parity import jobs_for

MARK = 'with open({marker!r}, "a") as file:\n    file.write(__name__ + "\\n")\n'
CONFIGURATION = """
from transformers import LlamaConfig

class FooConfig(LlamaConfig):
    model_type = "foo"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_foo import FooConfig

class FooForCausalLM(LlamaForCausalLM):
    config_class = FooConfig
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizer

class FooTokenizer(PreTrainedTokenizer):
    @property
    def vocab_size(self):
        return 10

    def get_vocab(self):
        return {str(i): i for i in range(10)} | self.added_tokens_encoder

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return int(token)

    def _convert_id_to_token(self, index):
        return str(index)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)
"""
AUTO_MAP = {"AutoConfig": "configuration_foo.FooConfig", "AutoModelForCausalLM": "modeling_foo.FooForCausalLM"}


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path_factory, monkeypatch):
    """Where transformers copies such code to, and imports it from."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.setattr(sys, "path", [*sys.path])
    torch.set_num_threads(1)


@pytest.fixture
def marker(tmp_path) -> Path:
    """The file that the checkpoint's code writes when it runs."""
    return tmp_path / "it_ran"


def make_checkpoint(folder: Path, marker: Path, **changes: object):
    """A Llama whose checkpoint says that code of its own must run it; returns the model in transformers."""
    model = make_model("llama-mha-biases-untied")
    save(model, folder)
    mark = MARK.format(marker=str(marker))
    (folder / "configuration_foo.py").write_text(mark + CONFIGURATION)
    (folder / "modeling_foo.py").write_text(mark + MODELING)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["FooForCausalLM"], "model_type": "foo", "auto_map": AUTO_MAP, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def test_without_the_flag_nothing_runs_and_the_error_names_the_file(tmp_path, marker):
    make_checkpoint(tmp_path, marker)
    for model_impl in ("auto", "transformers"):
        with pytest.raises(UnsupportedModelError, match=r"modeling_foo\.py and configuration_foo\.py.*--trust-remote-code"):
            LLM(str(tmp_path), skip_tokenizer_init=True, model_impl=model_impl)
    with pytest.raises(UnsupportedModelError, match="FooForCausalLM is not supported"):
        LLM(str(tmp_path), skip_tokenizer_init=True, model_impl="quire", trust_remote_code=True)
    assert not marker.exists()


def test_with_the_flag_it_answers_as_in_transformers(tmp_path, marker):
    model = make_checkpoint(tmp_path, marker)
    prompts = draw_prompts(4, 40)
    expected = greedy(model, prompts, 8)
    executor = LocalExecutor(make_config(tmp_path, trust_remote_code=True))
    jobs = Driver(executor, chunk=37).run(jobs_for(prompts, 8))
    for job, answer in zip(jobs, expected, strict=True):
        same_or_near_tie(job.output, lambda step, job=job: job.logprobs[step].logprobs[0], answer)
    assert "modeling_foo" in marker.read_text()


@pytest.mark.parametrize(
    ("architecture", "model_type", "model_impl"),
    [("LlamaForCausalLM", "llama", "quire"), ("ArceeForCausalLM", "arcee", "transformers")],
)
def test_an_architecture_that_is_known_runs_without_the_code(architecture, model_type, model_impl, tmp_path, marker):
    make_checkpoint(tmp_path, marker, architectures=[architecture], model_type=model_type)
    for trust in (False, True):
        hf, found = read_model(str(tmp_path), EngineArgs(trust_remote_code=trust))
        assert (hf.architecture, found) == (architecture, model_impl)
    assert not marker.exists()


def test_a_tokenizer_with_code_runs_with_the_flag_only(tmp_path, marker):
    (tmp_path / "tokenization_foo.py").write_text(MARK.format(marker=str(marker)) + TOKENIZATION)
    settings = {"tokenizer_class": "FooTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_foo.FooTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"tokenization_foo\.py, which runs only with --trust-remote-code"):
        load_tokenizer(tmp_path)
    assert not marker.exists()
    assert load_tokenizer(tmp_path, trust_remote_code=True).encode("123", add_special_tokens=False) == [1, 2, 3]
    assert marker.exists()
