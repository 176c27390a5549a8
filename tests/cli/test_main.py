"""The `quire` command: what help loads, what wrong options are told, exit statuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

import quire
from quire.cli.main import COMMANDS, build_parser, main


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quire", *words], input=stdin, capture_output=True, text=True, timeout=120
    )


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, quire.cli.main as m; print(m.build_parser(None).format_help());"
        "names = ('torch', 'transformers', 'numpy', 'starlette', 'zmq', 'tokenizers');"
        "heavy = [n for n in names if n in sys.modules];"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_loads_neither_torch_nor_transformers(command: str) -> None:
    code = (
        f"import sys, quire.cli.main as m; p = m.build_parser({command!r}); p.format_help();"
        "heavy = [n for n in ('torch', 'transformers') if n in sys.modules]; assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    for words in (["version"], ["--version"]):
        done = run(*words)
        assert (done.returncode, done.stdout.strip()) == (0, quire.__version__)


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "serve" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (["serve", "--prot", "80"], ["unknown option --prot", "--port"]),
        (["serve", "--max-model-length", "80"], ["unknown option --max-model-length", "--max-model-len"]),
        (["serve", "--max-mod", "80"], ["unknown option --max-mod"]),
        (["serve", "a", "b"], ["unexpected argument 'b'"]),
        (["serve", "--port", "x"], ["--port", "x"]),
        (["sevre"], ["sevre", "serve"]),
        (["bench", "serve", "--request-rat", "3"], ["unknown option --request-rat", "--request-rate"]),
        (["bench"], ["KIND"]),
    ],
)
def test_wrong_words_are_one_line_and_status_2(
    words: list[str], hints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    message = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message.count("\n") == 1
    assert all(hint in message for hint in hints), message


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["serve", "--port", "99999999"], "port must be at most 65535"),
        (["serve", "--shutdown-timeout", "-1"], "shutdown_timeout must be at least 0"),
        (["serve", "--block-size", "0"], "block_size must be at least 1"),
        (["serve", "--enable-lora"], "not supported yet"),
        (["serve", "/nonexistent/model", "--port", "0"], "/nonexistent/model"),
        (["serve", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1:8000"),
        (["run", "a", "b", "c"], "3 words"),
        (["run", "hi", "--temperature", "9"], "temperature must be a number in [0, 2]"),
        (["bench", "throughput", "--num-prompts", "0"], "num_prompts must be at least 1"),
        (["bench", "throughput", "--dataset-name", "azure"], "--dataset-path"),
        (["bench", "serve", "--base-url", "localhost"], "localhost"),
        (["bench", "serve", "--port", "1"], "no server answers"),
    ],
)
def test_errors_of_the_user_are_one_line_and_status_2(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("quire: error: ") and message.count("\n") == 1
    assert hint in message


def test_both_spellings_of_an_option() -> None:
    args = build_parser("serve").parse_args(
        ["serve", "m", "--max_model_len", "4k", "--served_model_name=a_b"]
    )
    assert (args.max_model_len, args.served_model_name, args.model_name) == (4000, ["a_b"], "m")


def test_help_shows_each_option_once() -> None:
    text = run("serve", "--help").stdout
    assert "--max-model-len" in text
    assert "--max_model_len" not in text


def test_model_as_an_option() -> None:
    args = build_parser("serve").parse_args(["serve", "--model", "m", "--port", "1"])
    assert (args.model, args.port) == ("m", 1)
