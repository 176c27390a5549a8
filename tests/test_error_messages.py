"""What somebody new to Quire gets wrong, in Python and on the command line: one line that says what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire import LLM, EngineArgs, SamplingParams, envs
from quire.cli.main import main
from quire.errors import (
    ConfigError,
    EngineDeadError,
    HubError,
    InvalidRequestError,
    ModelLoadError,
    QuireError,
)
from quire.loader.formats import read_weights
from quire.server.args import ServerArgs
from quire.server.run import run_server
from tests.engine.fakes import write_byte_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 260,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 257,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint folder that the simulated executor can run."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return write_byte_tokenizer(tmp_path)


def simulated(model: Path | str, **options: Any) -> LLM:
    return LLM(model, distributed_executor_backend="simulated", **options)  # type: ignore[arg-type]


# -- loading -------------------------------------------------------------------------------------------------


def test_a_path_object_is_a_folder(model: Path) -> None:
    assert simulated(model).generate("a", SamplingParams(max_tokens=1))[0].finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "nonsense"}, "quantization must be one of int8, int4, .* got 'nonsense'"),
        ({"quantization": "marlin"}, "not supported yet: quantization='marlin'"),
        ({"hf_overrides": "x"}, "hf_overrides must be a dict"),
        ({"generation_config": "/nowhere"}, "auto, vllm, none or a folder with generation_config.json, got '/nowhere'"),
        ({"chat_template": "/no/file"}, "neither a template nor a file that can be read: No such file"),
        ({"chat_template": "{% for %}"}, "chat template is not valid Jinja, line 1"),
        ({"tokenizer": "/no/tokenizer"}, "tokenizer must be a folder or a hub id, but there is no folder"),
    ],
)  # fmt: skip
def test_wrong_options(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuireError, match=message):
        simulated(model, **options)


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(ModelLoadError, match="no folder ''"):
        LLM(model="")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ConfigError, match="holds no tokenizer.*skip_tokenizer_init"):
        simulated(tmp_path)


def test_weights_that_git_left_on_its_server(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelLoadError, match="git lfs pull"):
        list(read_weights(str(tmp_path)))


@pytest.mark.parametrize("option", ["model", "tokenizer"])
def test_a_connection_that_fails_is_a_hub_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise httpx.ProxyError("the proxy is away")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(HubError, match=f"^{option} owner/name could not be downloaded .the proxy is away."):
        simulated(**{"model": model, option: "owner/name"})


@pytest.mark.parametrize(
    ("variable", "value"), [(envs.NUM_THREADS, "many"), (envs.NUM_THREADS, "0"), (envs.LOG_LEVEL, "loud")]
)
def test_environment_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, variable: envs.EnvVar, value: str
) -> None:
    monkeypatch.setenv(variable.name, value)
    with pytest.raises(ConfigError, match=f"environment variable {variable.name} must be .*, got '{value}'"):
        variable.read()


def test_a_folder_for_sockets_that_is_not_there(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_IPC_DIR", "/nowhere/at/all")
    with pytest.raises(ConfigError, match="QUIRE_IPC_DIR=/nowhere/at/all: No such file"):
        run_server(EngineArgs(model=str(model)), ServerArgs(port=0))


# -- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stop", "stop_token_ids", "bad_words"])
def test_lists_must_be_lists(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} must be a list, got 5"):
        SamplingParams(**{name: 5})


def test_wrong_arguments_of_llm(model: Path) -> None:
    llm = simulated(model)
    with pytest.raises(InvalidRequestError, match="sampling_params must be SamplingParams or a list of them"):
        llm.generate("a", {"temperature": 1})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="messages must be a list of messages.*got 'hello'"):
        llm.chat("hello")  # type: ignore[arg-type]
    llm.shutdown()
    with pytest.raises(EngineDeadError, match="was shut down"):
        llm.generate("a")


# -- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serv"], "unknown command 'serv'; did you mean serve?"),
        (["bench", "serving"], "unknown kind 'serving'; did you mean serve?"),
        (["serve", "--gpu-memory-utilization", "much"], "argument --gpu-memory-utilization: 'much' is not a number"),
        (["serve", "--hf-overrides", "5"], "hf_overrides must be a dict (on the command line a JSON object), got 5"),
        (["serve", "--ssl-keyfile", "/no/key"], "ssl_keyfile must be a file, but there is none at /no/key"),
        (["serve", "--ssl-keyfile", __file__], "ssl_keyfile needs ssl_certfile beside it"),
        (["serve", "--ssl-keyfile", __file__, "--ssl-certfile", __file__], "must be a PEM certificate and its key"),
        (["bench", "serve", "--port", "1"], "no server answers at http://127.0.0.1:1/v1/models (Connection refused)"),
        (["bench", "serve", "--dataset-name", "azure"], "--dataset-name azure needs --dataset-path"),
        (["bench", "serve", "--dataset-name", "azure", "--dataset-path", "/no/file"], "cannot read /no/file: No such"),
    ],
)  # fmt: skip
def test_one_line_and_status_2(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert status == 2
    assert message in error and error.count("\n") == 1


def test_addresses_that_cannot_be_listened_on(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: Address already in use; .* --port"):
            run_server(EngineArgs(model=str(model)), ServerArgs(port=port))
    with pytest.raises(ConfigError, match="choose an address with --host"):
        run_server(EngineArgs(model=str(model)), ServerArgs(host="256.256.256.256", port=0))


def test_help_shows_defaults_and_what_is_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "latency", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: quire bench latency [options]")
    assert "(default: 16)" in shown and "Not supported yet: " in shown
