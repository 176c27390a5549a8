"""Every environment variable Quire reads: name, type, default, meaning. Nothing else calls `os.environ`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quire.errors import ConfigError


@dataclass(frozen=True)
class EnvVar:
    """One environment variable; `read()` returns the parsed value or the default."""

    name: str
    parse: Callable[[str], Any]
    default: Any
    meaning: str

    def read(self) -> Any:
        """The value now; raises ConfigError that names the variable when it cannot be parsed."""
        text = os.environ.get(self.name)
        if text is None or text == "":
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise ConfigError(f"environment variable {self.name} {error}, got {text!r}") from None

    def write(self, text: str) -> None:
        """Set it, for this process and those that it starts."""
        os.environ[self.name] = text


def _log_level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return text.upper()


def _log_format(text: str) -> str:
    if text not in ("text", "json"):
        raise ValueError("must be text or json")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("must be an integer of at least 1")
    return int(text)


def _limit(text: str) -> int | None:
    """A count; 0 means none given, as in Ollama."""
    return None if text == "0" else _count(text)


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 60.0:
        raise ValueError("must be a number of seconds in [0, 60]")
    return seconds


def _fault(text: str) -> tuple[signal.Signals, list[int]]:
    name, _, ids = text.partition(":")
    if name not in signal.Signals.__members__ or not all(word.isdecimal() for word in ids.split(",")):
        raise ValueError("must be SIGNAL:ID,ID,... such as SIGKILL:17,4")
    return signal.Signals[name], [int(word) for word in ids.split(",")]


LOG_LEVEL = EnvVar(
    "QUIRE_LOG_LEVEL", _log_level, "INFO", "Level of Quire's own log: DEBUG, INFO, WARNING, ERROR."
)
LOG_FORMAT = EnvVar("QUIRE_LOG_FORMAT", _log_format, "text", "Form of log lines: text, or json, an object per line.")
CPU_ISA = EnvVar(
    "QUIRE_CPU_ISA",
    str,
    None,
    "Force a lower CPU instruction level: generic, avx2, avx512, avx512_vnni, avx512_bf16, avx512_amx; "
    "generic, neon on Arm.",
)
NUM_THREADS = EnvVar(
    "QUIRE_NUM_THREADS", _count, None, "Threads of one worker; default: the CPUs it may use."
)
IPC_DIR = EnvVar("QUIRE_IPC_DIR", str, None, "Folder for private sockets; default: a new 0700 folder.")
HOST = EnvVar(
    "QUIRE_HOST", str, None, "Where `quire serve` listens and the commands that talk to it call: host, host:port or URL."
)
MODELS = EnvVar("QUIRE_MODELS", str, None, "Folder of models, as --models-dir.")
OLLAMA_HOST = EnvVar("OLLAMA_HOST", str, None, "Ollama's name of QUIRE_HOST.")
OLLAMA_MODELS = EnvVar("OLLAMA_MODELS", str, None, "Ollama's name of QUIRE_MODELS.")
OLLAMA_KEEP_ALIVE = EnvVar("OLLAMA_KEEP_ALIVE", str, None, "As --keep-alive.")
OLLAMA_MAX_LOADED_MODELS = EnvVar("OLLAMA_MAX_LOADED_MODELS", _limit, None, "As --max-loaded-models; 0: no limit.")
OLLAMA_NUM_PARALLEL = EnvVar(
    "OLLAMA_NUM_PARALLEL", _limit, None, "With --models-dir: requests at a time per model, as --max-num-seqs; 0: the default."
)
OLLAMA_CONTEXT_LENGTH = EnvVar(
    "OLLAMA_CONTEXT_LENGTH", _limit, None, "With --models-dir: longest context of each model, tokens; 0: its own."
)
OLLAMA_ORIGINS = EnvVar(
    "OLLAMA_ORIGINS", _list, None, "Origins of web pages that may call the server, with commas, as --allowed-origins."
)
PROMETHEUS_MULTIPROC_DIR = EnvVar(
    "PROMETHEUS_MULTIPROC_DIR",
    str,
    None,
    "Folder where several front ends share their metrics; prometheus_client's own, set by the server.",
)
API_KEY = EnvVar(
    "QUIRE_API_KEY",
    _list,
    None,
    "Keys that open the server, with commas, as --api-key; commands that talk to a server send the first.",
)
VLLM_API_KEY = EnvVar("VLLM_API_KEY", _list, None, "vLLM's name of QUIRE_API_KEY.")
ADMIN_API_KEY = EnvVar("QUIRE_ADMIN_API_KEY", _list, None, "Keys of the routes below /admin, as --admin-api-key.")
SIMULATED_STEP_S = EnvVar(
    "QUIRE_SIMULATED_STEP_S", _seconds, 0.0, "How long a step of the simulated executor takes, seconds."
)
TEST_FAULT = EnvVar(
    "QUIRE_TEST_FAULT",
    _fault,
    None,
    "For tests of recovery only: the engine process sends itself a signal whenever it begins to compute a prompt with these "
    "token ids in a row (SIGKILL:17,4).",
)
HF_TOKEN = EnvVar("HF_TOKEN", str, None, "Hugging Face access token.")
HF_HUB_TOKEN = EnvVar("HUGGING_FACE_HUB_TOKEN", str, None, "Older name of HF_TOKEN.")
HF_HUB_TOKEN_ALIAS = EnvVar("HUGGINGFACE_HUB_TOKEN", str, None, "Another older name of HF_TOKEN.")

ALL: tuple[EnvVar, ...] = tuple(value for value in list(globals().values()) if isinstance(value, EnvVar))


def hf_token() -> str | None:
    """The hub token from any of the names in use, or None."""
    token: str | None = HF_TOKEN.read() or HF_HUB_TOKEN.read() or HF_HUB_TOKEN_ALIAS.read()
    return token


def host() -> str | None:
    """Where the server is, from either name, or None."""
    given: str | None = HOST.read() or OLLAMA_HOST.read()
    return given


def models_dir() -> str | None:
    """The folder of models, from either name, or None."""
    given: str | None = MODELS.read() or OLLAMA_MODELS.read()
    return given


def text_of(name: str) -> str | None:
    """The text of another program's variable, None where it is absent or empty; what it means is its reader's table."""
    return os.environ.get(name) or None
