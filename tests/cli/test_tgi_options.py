"""Text Generation Inference's variables and flags as options of `quire serve` and `quire launcher`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from quire.cli.main import main
from quire.config.engine_args import EngineArgs
from quire.server.args import ServerArgs
from quire.server.tgi.environment import OPTIONS, VARIABLES, read_settings

DOCUMENT = Path(__file__).parents[2] / "docs/text-generation-inference.md"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line with variables; returns the options that the server would start with."""

    def run(*words: str, **variables: str) -> tuple[EngineArgs, ServerArgs]:
        started: list[Any] = []
        monkeypatch.setattr("quire.server.run.run_server", lambda *args: started.extend(args))
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        status = main(words)
        for name in variables:
            monkeypatch.delenv(name)
        assert status == 0
        return started[0], started[1]

    return run


@pytest.mark.parametrize("command", ["serve", "launcher"])
def test_a_flag_of_many_values_may_come_again(start: Any, command: str) -> None:
    """`leave_open` puts something that is no list in the place of the default."""
    _, server = start(command, "--api-key", "one", "two", "--api-key", "three")
    assert server.api_key == ["one", "two", "three"]


# What users set, and the options that come of it.
MAPPED: list[tuple[str, str, dict[str, Any]]] = [
    ("REVISION", "refs/pr/1", {"revision": "refs/pr/1"}),
    ("JSON_OUTPUT", "true", {"log_format": "json"}),
    ("JSON_OUTPUT", "false", {"log_format": "text"}),
    ("NUM_SHARD", "1", {"tensor_parallel_size": 1}),
    ("QUANTIZE", "bitsandbytes", {"quantization": "int8"}),
    ("QUANTIZE", "eetq", {"quantization": "int8"}),
    ("QUANTIZE", "bitsandbytes-nf4", {"quantization": "int4"}),
    ("DTYPE", "bfloat16", {"dtype": "bfloat16"}),
    ("KV_CACHE_DTYPE", "int8", {"kv_cache_dtype": "int8"}),
    ("KV_CACHE_DTYPE", "fp8_e4m3fn", {"kv_cache_dtype": "fp8_e4m3"}),
    ("QUANTIZE", "fp8", {"quantization": "fp8"}),
    ("TRUST_REMOTE_CODE", "true", {"trust_remote_code": True}),
    ("TRUST_REMOTE_CODE", "false", {"trust_remote_code": False}),
    ("MAX_CONCURRENT_REQUESTS", "64", {"max_concurrent_requests": 64}),
    ("MAX_BEST_OF", "5", {"max_best_of": 5}),
    ("MAX_STOP_SEQUENCES", "9", {"max_stop_sequences": 9}),
    ("MAX_TOP_N_TOKENS", "7", {"max_top_n_tokens": 7}),
    ("MAX_INPUT_LENGTH", "1024", {"max_input_tokens": 1024}),
    ("MAX_INPUT_TOKENS", "1024", {"max_input_tokens": 1024}),
    ("MAX_TOTAL_TOKENS", "2048", {"max_model_len": 2048}),
    ("MAX_BATCH_PREFILL_TOKENS", "4096", {"max_num_batched_tokens": 4096}),
    ("MAX_BATCH_TOTAL_TOKENS", "16001", {"num_gpu_blocks_override": 1001}),
    ("MAX_BATCH_SIZE", "32", {"max_num_seqs": 32}),
    ("MAX_CLIENT_BATCH_SIZE", "4", {"max_client_batch_size": 4}),
    ("HOSTNAME", "0.0.0.0", {"host": "0.0.0.0"}),
    ("HOSTNAME", "::", {"host": "::"}),
    ("HOSTNAME", "localhost", {"host": "localhost"}),
    ("PORT", "8080", {"port": 8080}),
    ("HUGGINGFACE_HUB_CACHE", "/data", {"download_dir": "/data"}),
    ("CUDA_MEMORY_FRACTION", "0.5", {"gpu_memory_utilization": 0.5}),
    ("CORS_ALLOW_ORIGIN", "https://a.example,https://b.example", {"allowed_origins": ["https://a.example", "https://b.example"]}),
    ("API_KEY", "secret", {"api_key": ["secret"]}),
    ("PAYLOAD_LIMIT", "2000000", {"max_body_bytes": 2000000}),
    ("GRACEFUL_TERMINATION_TIMEOUT", "90", {"shutdown_timeout": 90.0}),
]  # fmt: skip


def check_options(engine: EngineArgs, server: ServerArgs, options: dict[str, Any]) -> None:
    """Each option has its value, and all others their default."""
    for name, value in (vars(engine) | vars(server)).items():
        default = vars(EngineArgs() if name in vars(engine) else ServerArgs())[name]
        assert value == options.get(name, default), name


@pytest.mark.parametrize(("name", "text", "options"), MAPPED)
def test_variables(start: Any, name: str, text: str, options: dict[str, Any]) -> None:
    engine, server = start("serve", MODEL_ID="owner/model", **{name: text})
    check_options(engine, server, options | {"model": "owner/model"})


@pytest.mark.parametrize(("name", "text", "options"), MAPPED)
def test_flags(start: Any, name: str, text: str, options: dict[str, Any]) -> None:
    flag = "--" + name.lower().replace("_", "-")
    words = [text]
    if name == "TRUST_REMOTE_CODE":  # Quire's own flag is a switch
        flag, words = ("--trust-remote-code" if text == "true" else "--no-trust-remote-code"), []
    engine, server = start("launcher", "--model-id", "owner/model", flag, *words)
    check_options(engine, server, {"host": "0.0.0.0", "port": 3000, "model": "owner/model"} | options)


def test_every_mapped_variable_is_tested() -> None:
    assert {name for name, _, _ in MAPPED} | {"MODEL_ID"} == {v.name for v in VARIABLES if v.option}
    assert set(vars(EngineArgs())) | set(vars(ServerArgs())) >= OPTIONS


def test_other_peoples_variables_change_nothing(start: Any) -> None:
    everything = {name: text for name, text, _ in MAPPED}
    check_options(*start("serve", **everything), {})
    everything["MODEL_ID"] = "owner/model"
    check_options(*start("serve", "folder", **everything), {"model": "folder"})
    check_options(*start("serve", "--model", "folder", **everything), {"model": "folder"})
    check_options(*start("serve", "--no-tgi-env", **everything), {})


def test_they_can_be_asked_for(start: Any) -> None:
    check_options(*start("serve", "folder", "--tgi-env", PORT="81"), {"model": "folder", "port": 81})


def test_a_containers_name_is_no_address(start: Any) -> None:
    check_options(*start("serve", MODEL_ID="m", HOSTNAME="3f2a9c"), {"model": "m"})
    check_options(
        *start("launcher", MODEL_ID="m", HOSTNAME="3f2a9c"), {"model": "m", "host": "0.0.0.0", "port": 3000}
    )


def test_the_command_line_wins_also_with_the_default(start: Any) -> None:
    variables = {"MODEL_ID": "m", "PORT": "81", "MAX_BATCH_TOTAL_TOKENS": "64", "DTYPE": "bfloat16"}
    engine, server = start("serve", "--port", "8000", "--block-size", "32", "--dtype", "auto", **variables)
    check_options(engine, server, {"model": "m", "block_size": 32, "num_gpu_blocks_override": 2})
    engine, server = start("launcher", "--model-id", "flag", "--max-total-tokens", "9", "--host", "box", **variables)
    assert (engine.model, engine.max_model_len, engine.dtype) == ("flag", 9, "bfloat16")
    assert (server.host, server.port) == ("box", 81)


def test_the_newer_name_of_the_input_length_wins(start: Any) -> None:
    _, server = start("serve", MODEL_ID="m", MAX_INPUT_TOKENS="2", MAX_INPUT_LENGTH="1")
    assert server.max_input_tokens == 2


def test_values_of_the_launcher_where_both_have_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launcher", "--model-id", "m", "--kv-cache-dtype", "fp8_e5m2"]) == 2
    assert "not supported yet: kv_cache_dtype='fp8_e5m2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"NUM_SHARD": "2"}, "tensor_parallel_size=2"),
        ({"QUANTIZE": "marlin"}, "quantization='marlin'"),
        ({"MAX_TOTAL_TOKENS": "many"}, "MAX_TOTAL_TOKENS must be an integer, got 'many'"),
        ({"TRUST_REMOTE_CODE": "si"}, "TRUST_REMOTE_CODE must be true or false, got 'si'"),
        ({"PORT": "70000"}, "port must be at most 65535, got 70000"),
        ({"ROPE_SCALING": "linear"}, "ROPE_SCALING is not supported: give --hf-overrides"),
        ({"LORA_ADAPTERS": "a,b"}, "LORA_ADAPTERS is not supported"),
    ],
)
def test_what_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], names: str
) -> None:
    for name, text in ({"MODEL_ID": "m"} | variables).items():
        monkeypatch.setenv(name, text)
    assert main(["serve"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("quire: error: ") and names in error


def test_the_log_says_what_counts_and_no_secret(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("quire.cli.tgi_options")
    caplog.set_level(logging.INFO, logger=logger.name)  # whatever level an earlier test left
    logger.addHandler(caplog.handler)
    try:
        start("serve", MODEL_ID="m", API_KEY="very-secret", PROMETHEUS_PORT="9001", CUDA_GRAPHS="1,2")
    finally:
        logger.removeHandler(caplog.handler)
    said = caplog.text
    assert "MODEL_ID, API_KEY" in said and "very-secret" not in said
    assert "PROMETHEUS_PORT is accepted but has no effect" in said and "CUDA_GRAPHS" in said


def test_switches_without_a_value(start: Any) -> None:
    engine, _ = start("launcher", "--model-id", "m", "--json-output", "--sharded", "--disable-custom-kernels")
    assert engine.model == "m"


def test_tokens_of_the_hub_are_read_anyway() -> None:
    names = {variable.name for variable in VARIABLES}
    assert not names & {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}


def test_the_document_has_every_variable() -> None:
    rows = DOCUMENT.read_text(encoding="utf-8")
    for variable in VARIABLES:
        assert f"| `{variable.name}` | {variable.note}" in rows or (
            f"`{variable.name}`" in rows and not variable.option
        ), variable.name


def test_nothing_is_set() -> None:
    assert read_settings(lambda name: None).options == {}
    assert "MODEL_ID" not in os.environ
