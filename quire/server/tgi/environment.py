"""Text Generation Inference's configuration: each environment variable (and launcher flag) and the option it sets here.

When the variables count is decided by the commands (`cli/tgi_options.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.config.options import parse_int
from quire.errors import ConfigError, NotSupportedError, describe

LAUNCHER_DEFAULTS: Mapping[str, Any] = {"host": "0.0.0.0", "port": 3000}
"""What the launcher takes where neither flag nor variable says otherwise: TGI's own defaults."""

TOKENS_OPTION = "kv_cache_tokens"
"""Not an option of Quire's: tokens of the KV cache, which become blocks once the block size is known."""

_QUANTIZATIONS = {"bitsandbytes": "int8", "eetq": "int8", "bitsandbytes-nf4": "int4", "bitsandbytes-fp4": "int4"}
_KV_CACHE_DTYPES = {"fp8_e4m3fn": "fp8_e4m3"}


@dataclass(frozen=True, slots=True)
class Variable:
    """One of TGI's settings. The flag of the launcher is its name in lower case, with dashes."""

    name: str
    option: str | None
    """Field of EngineArgs or ServerArgs; None: it sets nothing here."""
    note: str
    """What becomes of it, for the documentation and the log."""
    convert: Callable[[str], Any] = str
    """From the text to the option's value; raises ValueError that says what is allowed, or returns None to set nothing."""
    is_refused: bool = False
    """Ignoring it would change answers, so it is an error that says what to do instead."""
    is_switch: bool = False
    """The flag may stand without a value."""

    @property
    def flag(self) -> str:
        """`MAX_INPUT_LENGTH` -> `--max-input-length`."""
        return "--" + self.name.lower().replace("_", "-")

    def value(self, text: str) -> Any:
        """The option's value. Raises ConfigError that names the variable."""
        if self.is_refused:
            raise NotSupportedError(f"{self.name} is not supported: {self.note}", parameter=self.name, value=text)
        try:
            return self.convert(text)
        except ValueError as error:
            raise ConfigError(f"{self.name} must be {error}, got {describe(text)}") from None


def _integer(text: str) -> int:
    try:
        return parse_int(text)
    except ValueError:
        raise ValueError("an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("true or false")
    return text.lower() in ("true", "1")


def _log_format(text: str) -> str:
    return "json" if _switch(text) else "text"


def _address(text: str) -> str | None:
    """Docker sets HOSTNAME to the container's name, at which nobody means to listen."""
    if text == "localhost":
        return text
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return None
    return text


def _one(text: str) -> list[str]:
    return [text]


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _quantization(text: str) -> str:
    return _QUANTIZATIONS.get(text, text)


def _kv_cache_dtype(text: str) -> str:
    return _KV_CACHE_DTYPES.get(text, text)


def _moot(name: str, note: str, *, is_switch: bool = False) -> Variable:
    return Variable(name, None, note, is_switch=is_switch)


def _refused(name: str, note: str) -> Variable:
    return Variable(name, None, note, is_refused=True)


VARIABLES: tuple[Variable, ...] = (
    Variable("MODEL_ID", "model", "the model: hub id or folder"),
    Variable("REVISION", "revision", "--revision"),
    Variable("NUM_SHARD", "tensor_parallel_size", "--tensor-parallel-size", _integer),
    Variable("QUANTIZE", "quantization", "--quantization; bitsandbytes and eetq: int8, bitsandbytes-nf4 and -fp4: int4, "
             "rounded while the model is read", _quantization),
    Variable("DTYPE", "dtype", "--dtype"),
    Variable("KV_CACHE_DTYPE", "kv_cache_dtype", "--kv-cache-dtype", _kv_cache_dtype),
    Variable("TRUST_REMOTE_CODE", "trust_remote_code", "--trust-remote-code", _switch, is_switch=True),
    Variable("MAX_CONCURRENT_REQUESTS", "max_concurrent_requests", "--max-concurrent-requests", _integer),
    Variable("MAX_BEST_OF", "max_best_of", "--max-best-of", _integer),
    Variable("MAX_STOP_SEQUENCES", "max_stop_sequences", "--max-stop-sequences", _integer),
    Variable("MAX_TOP_N_TOKENS", "max_top_n_tokens", "--max-top-n-tokens", _integer),
    Variable("MAX_INPUT_LENGTH", "max_input_tokens", "older name of MAX_INPUT_TOKENS", _integer),
    Variable("MAX_INPUT_TOKENS", "max_input_tokens", "--max-input-tokens", _integer),
    Variable("MAX_TOTAL_TOKENS", "max_model_len", "--max-model-len", _integer),
    Variable("MAX_BATCH_PREFILL_TOKENS", "max_num_batched_tokens", "--max-num-batched-tokens", _integer),
    Variable("MAX_BATCH_TOTAL_TOKENS", TOKENS_OPTION, "size of the KV cache in tokens; --num-gpu-blocks-override", _integer),
    Variable("MAX_BATCH_SIZE", "max_num_seqs", "--max-num-seqs", _integer),
    Variable("MAX_CLIENT_BATCH_SIZE", "max_client_batch_size", "--max-client-batch-size", _integer),
    Variable("HOSTNAME", "host", "--host, if it is an IP address or localhost", _address),
    Variable("PORT", "port", "--port", _integer),
    Variable("HUGGINGFACE_HUB_CACHE", "download_dir", "--download-dir"),
    Variable("CUDA_MEMORY_FRACTION", "gpu_memory_utilization", "--gpu-memory-utilization", _number),
    Variable("CORS_ALLOW_ORIGIN", "allowed_origins", "--allowed-origins", _words),
    Variable("API_KEY", "api_key", "--api-key", _one),
    Variable("PAYLOAD_LIMIT", "max_body_bytes", "--max-body-bytes", _integer),
    Variable("GRACEFUL_TERMINATION_TIMEOUT", "shutdown_timeout", "--shutdown-timeout", _number),
    Variable("JSON_OUTPUT", "log_format", "--log-format json", _log_format, is_switch=True),
    _moot("SHARDED", "NUM_SHARD decides", is_switch=True),
    _moot("VALIDATION_WORKERS", "prompts are checked without workers of their own"),
    _moot("SPECULATE", "there is no speculation yet; answers are the same without"),
    _moot("WAITING_SERVED_RATIO", "every step takes in waiting requests"),
    _moot("MAX_WAITING_TOKENS", "every step takes in waiting requests"),
    _moot("CUDA_GRAPHS", "nothing is recorded per batch size"),
    _moot("PROMETHEUS_PORT", "metrics are at /metrics of the server's port"),
    _moot("SHARD_UDS_PATH", "the engine has a private socket"),
    _moot("MASTER_ADDR", "ranks find each other"),
    _moot("MASTER_PORT", "ranks find each other"),
    _moot("DISABLE_CUSTOM_KERNELS", "kernels are chosen for the machine", is_switch=True),
    _moot("USE_FLASH_ATTENTION", "kernels are chosen for the machine", is_switch=True),
    _moot("PAGED_ATTENTION", "the KV cache is always paged", is_switch=True),
    _moot("OTLP_ENDPOINT", "it speaks gRPC; give --otlp-traces-endpoint, which speaks HTTP"),
    _moot("OTLP_SERVICE_NAME", "OTEL_SERVICE_NAME is OpenTelemetry's own"),
    _moot("USAGE_STATS", "none are sent"),
    _moot("ENABLE_PREFILL_LOGPROBS", "always on", is_switch=True),
    _moot("DISABLE_GRAMMAR_SUPPORT", "requests decide", is_switch=True),
    _moot("WATERMARK_GAMMA", "requests for watermarks are refused"),
    _moot("WATERMARK_DELTA", "requests for watermarks are refused"),
    _refused("TOKENIZER_CONFIG_PATH", "give the chat template with --chat-template"),
    _refused("ROPE_SCALING", "give --hf-overrides '{\"rope_scaling\": {...}}'"),
    _refused("ROPE_FACTOR", "give --hf-overrides '{\"rope_scaling\": {...}}'"),
    _refused("WEIGHTS_CACHE_OVERRIDE", "give the folder as the model"),
    _refused("LORA_ADAPTERS", "there are no adapters yet"),
    _refused("NGROK", "there is no tunnel"),
)  # fmt: skip
"""HF_TOKEN and HUGGING_FACE_HUB_TOKEN are read by every command, with or without TGI's other variables."""

OPTIONS: frozenset[str] = frozenset(v.option for v in VARIABLES if v.option) - {TOKENS_OPTION}
"""The options that a variable may set."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the variables that are set come to."""

    options: dict[str, Any]
    """Option -> value."""
    used: tuple[str, ...]
    """Names of the variables that set them."""
    moot: tuple[Variable, ...]
    """Those that are set and do nothing."""


def read_settings(read: Callable[[str], str | None]) -> Settings:
    """Settings of the variables that `read` gives a text for. Raises ConfigError or NotSupportedError."""
    options: dict[str, Any] = {}
    used, moot = [], []
    for variable in VARIABLES:
        text = read(variable.name)
        if text is None:
            continue
        value = variable.value(text)
        if variable.option is None:
            moot.append(variable)
        elif value is not None:
            options[variable.option] = value
            used.append(variable.name)
    return Settings(options, tuple(used), tuple(moot))
