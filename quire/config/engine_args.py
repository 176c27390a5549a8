"""`EngineArgs`: every option of an engine with its default and its help text; flags and keyword arguments
come from here.

What the options become is `EngineConfig` (`types.py`); the work of resolving them is
`quire/engine/resolve.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from dataclasses import dataclass, fields
from typing import Any

from quire.config.options import State, add_flag, as_flags, clean_value, option, option_of
from quire.config.quantization import QUANTIZED_CHECKPOINTS
from quire.config.types import EngineConfig
from quire.errors import ConfigError, NotSupportedError, describe
from quire.log import get_logger, warn_once

_log = get_logger(__name__)

_DTYPES = ("auto", "float32", "bfloat16", "float16", "half", "float")
QUANTIZATIONS_AT_LOAD = ("int8", "int4", "fp8")
_LATER_QUANTIZATIONS = ("marlin",)


@dataclass
class EngineArgs:
    """Options of an engine, named as in vLLM.

    Raises ConfigError for a wrong value, NotSupportedError for what is not built yet.
    """

    # Model and tokenizer
    model: str | None = option(None, "Folder or hub id of the model; none: the small built-in model.")
    served_model_name: str | list[str] | None = option(
        None, "Names the server answers to; default: the model.", many=True
    )
    tokenizer: str | None = option(None, "Folder or hub id of the tokenizer; default: the model's.")
    tokenizer_mode: str = option(
        "auto",
        "auto; hf: through transformers; slow: the Python tokenizer of transformers.",
        choices=("auto", "hf", "slow"),
    )
    skip_tokenizer_init: bool = option(
        False, "Load no tokenizer: prompts are token ids and outputs have no text."
    )
    model_impl: str = option(
        "auto",
        "What computes the model: quire (vllm means the same), transformers, which is slower, or auto: transformers for "
        "architectures that Quire has no file for.",
        choices=("auto", "quire", "vllm", "transformers"),
    )
    trust_remote_code: bool = option(
        False, "Allow code that comes with a checkpoint to run, where neither Quire nor transformers has its class."
    )
    revision: str | None = option(None, "Branch, tag or commit of the model on the hub.")
    tokenizer_revision: str | None = option(None, "Branch, tag or commit of the tokenizer on the hub.")
    hf_token: str | None = option(
        None, "Access token for the hub; default: HF_TOKEN, or the one that `hf auth login` has stored."
    )
    download_dir: str | None = option(None, "Folder for downloads; default: the Hugging Face cache.")
    load_format: str = option(
        "auto",
        "How weights are read.",
        choices=("auto", "safetensors", "pt", "gguf", "dummy"),
        later_choices=("npcache", "tensorizer", "sharded_state", "bitsandbytes"),
    )
    runner: str = option(
        "auto",
        "generate: text; pooling: vectors; auto: vectors for encoders and for checkpoints made for sentence-transformers.",
        choices=("auto", "generate", "pooling"),
        later_choices=("draft",),
    )
    convert: str = option(
        "auto",
        "embed: vectors of a model that was made for text.",
        choices=("auto", "none", "embed", "classify"),
        later_choices=("reward",),
    )
    task: str = option(
        "auto",
        "Older name of runner and convert.",
        choices=("auto", "generate", "embed", "embedding", "classify", "score", "encode"),
        later_choices=("reward", "transcription", "draft"),
    )
    pooler_config: dict[str, Any] | None = option(
        None,
        "How hidden states become a vector, as JSON: pooling_type (LAST, MEAN, CLS) and normalize; "
        "default: as the model's files say.",
        aliases=("--override-pooler-config",),
    )
    dtype: str = option(
        "auto",
        "Type of weights and activations; activations on a CPU are always float32. auto: the checkpoint's.",
        choices=_DTYPES,
    )
    quantization: str | None = option(
        None,
        "int8, int4, fp8: round the weights of a float checkpoint while it is read, and multiply in integers (fp8: in bfloat16). "
        "Any other: the form that a quantized checkpoint has, which is known without it.",
        choices=tuple(dict.fromkeys((*QUANTIZATIONS_AT_LOAD, *QUANTIZED_CHECKPOINTS))),
        later_choices=_LATER_QUANTIZATIONS,
    )
    quantization_group_size: int = option(
        32, "Inputs that share a weight scale in int4: 32, 64 or 128; fewer is closer to the checkpoint."
    )
    quantization_activation_group: int = option(
        64, "Inputs that share an activation scale: 32, 64 or 128; 0: all of a token's, fastest but hurt by outliers."
    )
    embedding_quantization: str = option(
        "auto",
        "The same for the token embedding and the output head; auto: fp8 with fp8, else int8 if anything is quantized.",
        choices=("auto", "none", "int8", "int4", "fp8"),
    )
    seed: int = option(0, "Seed from which requests without their own get theirs.")
    max_model_len: int | None = option(
        None, "Longest prompt plus output, tokens (4096, 4k, 4K); default: the model's.", low=1
    )
    hf_overrides: dict[str, Any] | None = option(None, "Fields that replace those of config.json, as JSON.")
    max_logprobs: int = option(
        20, "Most log-probabilities per position that a request may ask for; -1: no limit.", low=-1
    )
    logprobs_mode: str = option(
        "raw_logprobs",
        "Log-probabilities or logits, before or after the sampling parameters.",
        choices=("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"),
    )
    generation_config: str = option(
        "auto",
        "Where default sampling parameters come from: auto (the model's folder), "
        "vllm or none (nowhere), or a folder.",
    )
    override_generation_config: dict[str, Any] | None = option(
        None, "Default sampling parameters to add or replace, as JSON."
    )
    chat_template: str | None = option(
        None, "File with a chat template, or its text; default: the tokenizer's."
    )

    # Images
    limit_mm_per_prompt: dict[str, Any] | None = option(
        None, 'Most images in one prompt, as JSON: {"image": 2}; default: as many as the context holds.'
    )
    allowed_local_media_path: str | None = option(
        None, "Folder below which file:// addresses of images are read; default: they are refused."
    )
    allowed_media_domains: list[str] | None = option(
        None,
        "Hosts from which http(s) addresses of images are read (example.org, *.example.org, or * for all on the public "
        "internet); default: they are refused.",
        many=True,
    )

    # Memory
    block_size: int = option(16, "Tokens of one KV cache block.", low=1)
    gpu_memory_utilization: float = option(
        0.9, "Share of free memory for weights and KV cache.", low=0, high=1, exclude_low=True
    )
    kv_cache_memory_bytes: int | None = option(
        None, "Exact size of the KV cache, bytes (2G).", low=1, aliases=("--kv-cache-memory",)
    )
    num_gpu_blocks_override: int | None = option(None, "Exact number of KV cache blocks.", low=1)
    kv_cache_dtype: str = option(
        "auto",
        "Type of the KV cache; auto: the model's. int8 and fp8 (that is fp8_e4m3) have a scale per token and head.",
        choices=("auto", "float32", "bfloat16", "float16", "int8", "fp8", "fp8_e4m3"),
        later_choices=("fp8_e5m2",),
    )
    enable_prefix_caching: bool = option(True, "Reuse the KV cache of prompts that begin alike.")
    swap_space: float = option(
        4.0, "Host memory for preempted requests, GiB; used with --preemption-mode swap.", low=0
    )
    cpu_offload_gb: float = option(0.0, "Weights to keep in host memory, GiB.", low=0, state=State.MOOT)

    # Scheduling
    max_num_seqs: int | None = option(None, "Most requests in one step.", low=1)
    max_num_batched_tokens: int | None = option(None, "Most tokens in one step.", low=1)
    enable_chunked_prefill: bool = option(True, "Compute long prompts in pieces beside running requests.")
    long_prefill_token_threshold: int = option(0, "Most tokens of one prompt per step; 0: no limit.", low=0)
    max_num_partial_prefills: int = option(
        1, "Most long prompts in pieces at a time.", low=1, state=State.MOOT
    )
    max_long_partial_prefills: int = option(
        1, "Most very long prompts in pieces at a time.", low=1, state=State.MOOT
    )
    scheduling_policy: str | None = option(
        None,
        "Order of requests: first come first served, by priority, or equal shares for tenants (API keys) whatever they send; "
        "default: fcfs, and fair for a server with several API keys.",
        choices=("fcfs", "priority", "fair"),
    )
    preemption_mode: str | None = option(
        None,
        "What becomes of the KV cache of a preempted request; default: recompute.",
        choices=("recompute", "swap"),
    )
    max_num_queued_reqs: int | None = option(
        None, "Refuse requests while this many wait (HTTP 429); default: no limit.", low=1, aliases=("--max-queue",)
    )
    max_num_queued_reqs_per_tenant: int | None = option(
        None,
        "Refuse requests of an API key while this many of its own wait; with several front ends, in each of them; "
        "default: no limit.",
        low=1,
        aliases=("--max-queue-per-tenant",),
    )

    # Where it runs
    device: str = option("auto", "What computes.", choices=("auto", "cpu", "cuda"))
    num_threads: int | None = option(
        None, "Threads of a worker on the CPU; default: the CPUs it may use.", low=1
    )
    tensor_parallel_size: int = option(
        1, "Ranks that share each layer.", low=1, aliases=("-tp",), state=State.LATER
    )
    pipeline_parallel_size: int = option(
        1, "Ranks that share the layers.", low=1, aliases=("-pp",), state=State.LATER
    )
    distributed_executor_backend: str | None = option(
        None,
        "What runs the ranks; `simulated` computes nothing.",
        choices=("local", "uni", "mp", "simulated"),
        later_choices=("ray",),
    )
    worker_use_ray: bool = option(False, "Run ranks under Ray.", state=State.LATER)
    disable_custom_all_reduce: bool = option(False, "Leave sums over ranks to the library.", state=State.MOOT)
    enforce_eager: bool = option(False, "Never record graphs of a step; on the CPU there are none.")
    max_context_len_to_capture: int | None = option(
        None, "Longest context of a recorded graph, tokens.", state=State.MOOT
    )
    max_seq_len_to_capture: int | None = option(
        None, "Longest sequence of a recorded graph, tokens.", state=State.MOOT
    )
    use_v2_block_manager: bool = option(True, "Name of a block manager of the past.", state=State.MOOT)

    # Speculation and adapters
    speculative_model: str | None = option(None, "Draft model.", state=State.LATER)
    num_speculative_tokens: int | None = option(None, "Draft tokens per step.", low=1, state=State.LATER)
    speculative_config: dict[str, Any] | None = option(
        None, "Speculative decoding, as JSON.", state=State.LATER
    )
    enable_lora: bool = option(False, "Serve LoRA adapters.", state=State.LATER)
    lora_modules: list[Any] | None = option(
        None, "Adapters to load: name=path.", many=True, state=State.LATER
    )
    max_loras: int = option(1, "Most adapters in one step.", low=1, state=State.LATER)
    max_lora_rank: int = option(16, "Highest rank of an adapter.", low=1, state=State.LATER)

    # Recovery
    engine_step_timeout: float = option(
        600.0,
        "Seconds after which an engine process that makes no step is taken to hang: it is killed, another one is started, "
        "and all requests go on; at least 2, or 0 for never.",
        low=0,
    )

    # Reports
    disable_log_stats: bool = option(False, "No line of statistics in the log while requests run.")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = clean_value(field, getattr(self, field.name))
            setattr(self, field.name, value)
            if value != field.default:
                _refuse_or_warn(field, value)

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> EngineArgs:
        """Like the constructor, but an unknown name is answered with the nearest known ones.

        `kv_cache_memory` is accepted for `kv_cache_memory_bytes`. Raises ConfigError or NotSupportedError.
        """
        if "kv_cache_memory" in kwargs:
            kwargs["kv_cache_memory_bytes"] = kwargs.pop("kv_cache_memory")
        known = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise ConfigError(f"unknown engine argument {name}{hint}")
        return cls(**kwargs)

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add one flag per option (`--x` and `--no-x` for switches); returns the parser."""
        group = parser.add_argument_group("engine")
        for field in fields(EngineArgs):
            add_flag(group, field)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        """The options in what an argument parser with `add_cli_args`
        returned; other attributes are left alone.
        """
        return cls(
            **{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
        )

    def as_command_line(self) -> str:
        """The flags that give these options; options at their default are left out."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words += as_flags(field, value)
        return " ".join(words)

    def create_engine_config(self, *, offline: bool = False) -> EngineConfig:
        """Find the model and resolve every option; `offline` picks the defaults of batch jobs, not a
        server's.

        Raises ConfigError, HubError or ModelLoadError. This is the one call from the contracts up to the
        engine.
        """
        from quire.engine.resolve import resolve_config

        return resolve_config(self, offline=offline)


def _refuse_or_warn(field: dataclasses.Field[Any], value: Any) -> None:
    """Say what an option that does nothing means: an error if it is still to
    be built, a warning if it has no meaning.
    """
    state = option_of(field).state
    if state is State.LATER:
        raise NotSupportedError(
            f"not supported yet: {field.name}={describe(value)} (leave it at {field.default!r})",
            parameter=field.name,
            value=value,
        )
    if state is State.MOOT:
        warn_once(_log, f"{field.name}={describe(value)} is accepted but has no effect")
