"""`EngineArgs`: names, values, flags, and what is refused or warned about. No model is loaded here."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex

import pytest

from quire.config.engine_args import EngineArgs
from quire.config.options import option_of, parse_int
from quire.errors import ConfigError, NotSupportedError


def parse(line: str) -> EngineArgs:
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser(exit_on_error=False))
    return EngineArgs.from_cli_args(parser.parse_args(shlex.split(line)))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The log of Quire, which pytest sees."""
    monkeypatch.setattr(logging.getLogger("quire"), "propagate", True)
    return caplog


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("4k", 4000),
        ("4K", 4096),
        ("1.5K", 1536),
        ("2G", 2**31),
        ("2g", 2 * 10**9),
        ("16KiB", 16384),
    ],
)
def test_integers_with_units(text, value):
    assert parse_int(text) == value


@pytest.mark.parametrize("text", ["", "k", "4 k", "1.0001K", "4x", "four"])
def test_bad_integers(text):
    with pytest.raises(ValueError, match="not a"):
        parse_int(text)


def test_defaults_are_the_documented_ones():
    args = EngineArgs()
    assert (args.block_size, args.swap_space, args.gpu_memory_utilization) == (16, 4.0, 0.9)
    assert (args.scheduling_policy, args.enable_prefix_caching, args.seed) == (None, True, 0)
    assert args.as_command_line() == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "dtype must be one of auto, float32, bfloat16, float16, half, float, got 'int3'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"max_model_len": "long"}, "max_model_len: 'long' is not an integer"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be at most 1, got 1.5"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization must be greater than 0, got 0"),
        ({"enable_prefix_caching": "yes"}, "enable_prefix_caching must be true or false, got 'yes'"),
        ({"tokenizer": 3}, "tokenizer must be a string, got 3"),
        ({"swap_space": "4"}, "swap_space must be a number, got '4'"),
        ({"block_size": 1.5}, "block_size must be an integer, got 1.5"),
    ],
)
def test_wrong_values(options, message):
    with pytest.raises(ConfigError) as caught:
        EngineArgs(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"quantization": "marlin"},
        {"load_format": "tensorizer"},
        {"kv_cache_dtype": "fp8_e5m2"},
        {"worker_use_ray": True},
        {"distributed_executor_backend": "ray"},
        {"speculative_model": "x"},
        {"num_speculative_tokens": 5},
        {"enable_lora": True},
        {"lora_modules": [("adapter1", "/path")]},
    ],
)
def test_what_is_to_come_says_so(options):
    with pytest.raises(NotSupportedError, match="not supported yet") as caught:
        EngineArgs(**options)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"cpu_offload_gb": 8},
        {"disable_custom_all_reduce": True},
        {"max_context_len_to_capture": 8192},
        {"max_seq_len_to_capture": 8192},
        {"use_v2_block_manager": False},
    ],
)
def test_what_has_no_meaning_is_accepted_with_one_warning(options, warnings):
    EngineArgs(**options)
    EngineArgs(**options)
    (record,) = warnings.records
    assert "has no effect" in record.message and next(iter(options)) in record.message


def test_defaults_given_explicitly_are_silent(warnings):
    EngineArgs(
        worker_use_ray=False, disable_custom_all_reduce=False, use_v2_block_manager=True, cpu_offload_gb=0
    )
    assert warnings.records == []


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match=r"max_num_sequences; did you mean max_num_seqs"):
        EngineArgs.from_kwargs(max_num_sequences=3)
    with pytest.raises(ConfigError, match=r"zzz$"):
        EngineArgs.from_kwargs(zzz=3)


def test_the_short_name_of_the_cache_size():
    assert EngineArgs.from_kwargs(kv_cache_memory="1G").kv_cache_memory_bytes == 2**30


@pytest.mark.parametrize(
    "line",
    ["--max-model-len 4K --no-enable-prefix-caching", "--max_model_len 4096 --no-enable_prefix_caching"],
)
def test_flags_in_both_spellings(line):
    args = parse(line)
    assert args.max_model_len == 4096 and args.enable_prefix_caching is False


def test_flags_of_every_kind():
    args = parse(
        "--model m --seed 3 --swap-space 2.5 --served-model-name a b --enforce-eager "
        """--override-generation-config '{"temperature": 0.5}' --kv-cache-memory 1G -tp 1"""
    )
    assert (args.model, args.seed, args.swap_space, args.served_model_name) == ("m", 3, 2.5, ["a", "b"])
    assert args.enforce_eager and args.override_generation_config == {"temperature": 0.5}
    assert args.kv_cache_memory_bytes == 2**30


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--model a --max-num-seqs 8",
        "--no-enable-chunked-prefill --served-model-name a b",
        "--swap-space 1.5 --enforce-eager",
    ],
)
def test_a_command_line_gives_the_same_options(line):
    assert parse(parse(line).as_command_line()) == parse(line)


def test_every_option_has_help_and_a_flag():
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    text = parser.format_help()
    for field in dataclasses.fields(EngineArgs):
        assert option_of(field).help.endswith((".", ")"))
        assert "--" + field.name.replace("_", "-") in text
    assert "not supported yet" in text and "without effect" in text


def test_bad_flags_explain_themselves():
    with pytest.raises(argparse.ArgumentError, match="4 apples"):
        parse("--max-model-len '4 apples'")
    with pytest.raises(argparse.ArgumentError, match="not JSON"):
        parse("--override-generation-config nope")
