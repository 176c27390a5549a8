"""From `EngineArgs` to `EngineConfig`: finds the model, reads its
configuration, and settles every option left open.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import msgspec

from quire import platform
from quire.config.engine_args import QUANTIZATIONS_AT_LOAD, EngineArgs
from quire.config.hf import generation_defaults
from quire.config.quantization import settle_quantization
from quire.config.rope import context_length
from quire.config.types import (
    CacheConfig,
    EngineConfig,
    HFConfig,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    PreemptionMode,
    SchedulerConfig,
    SchedulingPolicy,
)
from quire.errors import ConfigError, InvalidRequestError, describe
from quire.loader.configuration import checkpoint_in, load_config
from quire.loader.hub import BUILTIN_MODELS, resolve_model
from quire.log import get_logger, warn_once
from quire.sampling_params import SamplingParams

_log = get_logger(__name__)

DEFAULT_MODEL = "folio"

_GIB = 2**30
_DTYPE_NAMES = {"half": "float16", "float": "float32"}
_MAX_SHARE_OF_MEMORY = 0.5
"""Weights of 16 bits are widened to 32 only while they then take at most this share of the available memory."""
_GROUP_SIZES = (32, 64, 128)

_NUM_BATCHED_TOKENS = {"server": 2048, "offline": 4096}
_NUM_SEQS = {"server": 128, "offline": 256}
_MIN_STEP_TIMEOUT_S = 2.0


def resolve_config(args: EngineArgs, *, offline: bool) -> EngineConfig:
    """Every option settled. Raises ConfigError, HubError, ModelLoadError or UnsupportedModelError."""
    path = resolve_model(_model_name(args), revision=args.revision, download_dir=args.download_dir)
    path = checkpoint_in(path, args.load_format)
    hf = load_config(path, args.hf_overrides)
    max_model_len = _max_model_len(args, hf)
    return EngineConfig(
        model=_model(args, Path(path), hf, max_model_len),
        load=LoadConfig(args.load_format, args.download_dir, args.revision, args.tokenizer_revision),
        cache=_cache(args),
        scheduler=_scheduler(args, max_model_len, "offline" if offline else "server"),
        parallel=_parallel(args),
        disable_log_stats=args.disable_log_stats,
        step_timeout_s=_step_timeout(args),
    )


def _model_name(args: EngineArgs) -> str:
    return DEFAULT_MODEL if args.model is None else args.model


# -- the model -----------------------------------------------------------------------------------------------


def _model(args: EngineArgs, path: Path, hf: HFConfig, max_model_len: int) -> ModelConfig:
    model = _model_name(args)
    names = args.served_model_name or model
    quantization = settle_quantization(args.quantization, hf.quantization, QUANTIZATIONS_AT_LOAD)
    return ModelConfig(
        model=model,
        path=str(path),
        tokenizer_path=_tokenizer_path(args, path),
        hf=hf,
        dtype=_dtype(args, hf, path),
        max_model_len=max_model_len,
        served_model_names=(names,) if isinstance(names, str) else tuple(names),
        seed=args.seed,
        tokenizer_mode=args.tokenizer_mode,
        skip_tokenizer_init=args.skip_tokenizer_init,
        trust_remote_code=args.trust_remote_code,
        quantization=quantization,
        quantization_group_size=_one_of("quantization_group_size", args.quantization_group_size, _GROUP_SIZES),
        quantization_activation_group=_one_of(
            "quantization_activation_group", args.quantization_activation_group, (0, *_GROUP_SIZES)
        ),
        embedding_quantization=_embedding_quantization(args, quantization),
        max_logprobs=args.max_logprobs,
        logprobs_mode=args.logprobs_mode,
        default_sampling_params=_default_sampling_params(args, path),
        chat_template=_chat_template(args.chat_template),
    )


def _tokenizer_path(args: EngineArgs, path: Path) -> str:
    """The model's folder, unless the tokenizer has a name or a revision
    of its own: then a folder or a hub id.
    """
    own_revision = args.tokenizer_revision not in (None, args.revision)
    name = args.tokenizer or (args.model if own_revision else None)
    if name is None or (name == args.model and not own_revision):
        return str(path)
    return resolve_model(name) if name in BUILTIN_MODELS else name


def _max_model_len(args: EngineArgs, hf: HFConfig) -> int:
    limit = context_length(hf)
    if args.max_model_len is not None and args.max_model_len > limit:
        raise ConfigError(
            f"max_model_len must be at most {limit}, the model's context length, got {args.max_model_len}"
        )
    return args.max_model_len or limit


def _dtype(args: EngineArgs, hf: HFConfig, path: Path) -> str:
    """The dtype asked for, or with `auto` the checkpoint's. A CPU widens float16 to float32, not bfloat16."""
    name = hf.dtype if args.dtype == "auto" else _DTYPE_NAMES.get(args.dtype, args.dtype)
    if may_use_gpu(args.device):
        return name
    if name == "float16":
        _log.info("dtype float16: computed in float32 on this CPU, which holds every float16 exactly")
        return "float32"
    if name == "bfloat16" and args.dtype == "auto" and not _has_kernels():
        return _widened(hf, path)
    return name


def _has_kernels() -> bool:
    """Whether the C++ kernels, which widen bfloat16 weights in registers, were built."""
    return importlib.util.find_spec("quire._cpu") is not None


def _widened(hf: HFConfig, path: Path) -> str:
    """float32 if it fits: the reference ops would otherwise widen bfloat16 weights anew in every step."""
    num_bytes = 2 * _weight_bytes(path)
    if num_bytes > _MAX_SHARE_OF_MEMORY * platform.available_memory_bytes():
        warn_once(
            _log,
            f"dtype auto: {hf.dtype} as in the checkpoint; float32 would need {num_bytes / _GIB:.1f} GiB",
        )
        return hf.dtype
    _log.info("dtype auto: without C++ kernels the checkpoint's %s is computed in float32", hf.dtype)
    return "float32"


def _embedding_quantization(args: EngineArgs, quantization: str | None) -> str | None:
    """8 bits with any quantization at load unless told otherwise: the output head's errors go straight into the logits."""
    if args.embedding_quantization == "auto":
        return {None: None, "fp8": "fp8"}.get(quantization, "int8")
    return None if args.embedding_quantization == "none" else args.embedding_quantization


def _one_of(name: str, value: int, allowed: tuple[int, ...]) -> int:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")
    return value


def may_use_gpu(device: str) -> bool:
    """Whether the worker will compute on a GPU, as far as that can be known without loading torch."""
    return device == "cuda" or (
        device == "auto" and any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/kfd"))
    )


def _weight_bytes(path: Path) -> int:
    """Size of the checkpoint's weight files."""
    if path.is_file():
        return path.stat().st_size
    sizes = {
        suffix: sum(file.stat().st_size for file in path.glob(f"*{suffix}"))
        for suffix in (".safetensors", ".bin")
    }
    return sizes[".safetensors"] or sizes[".bin"]


def _default_sampling_params(args: EngineArgs, path: Path) -> dict[str, Any]:
    """The model's advice with the user's changes, checked as sampling parameters."""
    source = args.generation_config
    defaults = {} if source in ("vllm", "none") else generation_defaults(_advice_folder(source, path))
    defaults.update(args.override_generation_config or {})
    known = {field.name for field in msgspec.structs.fields(SamplingParams)}
    for name in defaults:
        if name not in known:
            raise ConfigError(f"override_generation_config: {name} is not a sampling parameter")
    try:
        SamplingParams(**defaults)
    except InvalidRequestError as error:
        raise ConfigError(f"generation config: {error}") from None
    return defaults


def _advice_folder(source: str, path: Path) -> Path:
    """Where generation_config.json is looked for. A folder that the user names must hold one."""
    if source == "auto":
        return path
    if not (Path(source) / "generation_config.json").is_file():
        raise ConfigError(
            "generation_config must be auto, vllm, none or a folder with generation_config.json, "
            f"got {describe(source)}"
        )
    return Path(source)


def _chat_template(given: str | None) -> str | None:
    """Text of a template given as a file or as itself."""
    if given is None or "{" in given or "\n" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template {describe(given)} is neither a template nor a file that can be read: {_reason(error)}"
        ) from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


# -- the rest ------------------------------------------------------------------------------------------------


def _cache(args: EngineArgs) -> CacheConfig:
    swaps = args.preemption_mode == "swap"
    return CacheConfig(
        block_size=args.block_size,
        kv_cache_dtype=args.kv_cache_dtype,
        gpu_memory_utilization=args.gpu_memory_utilization,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        num_blocks_override=args.num_gpu_blocks_override,
        swap_space_bytes=int(args.swap_space * _GIB) if swaps else 0,
        enable_prefix_caching=args.enable_prefix_caching,
    )


def _scheduler(args: EngineArgs, max_model_len: int, usage: str) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_batched_tokens=_max_num_batched_tokens(args, max_model_len, usage),
        max_num_seqs=args.max_num_seqs or _NUM_SEQS[usage],
        max_model_len=max_model_len,
        enable_chunked_prefill=args.enable_chunked_prefill,
        long_prefill_token_threshold=args.long_prefill_token_threshold,
        policy=cast(SchedulingPolicy, args.scheduling_policy or "fcfs"),
        preemption_mode=cast(PreemptionMode, args.preemption_mode or "recompute"),
        max_num_queued_requests=args.max_num_queued_reqs,
        max_num_queued_requests_per_tenant=args.max_num_queued_reqs_per_tenant,
    )


def _max_num_batched_tokens(args: EngineArgs, max_model_len: int, usage: str) -> int:
    """The step's token budget. Without chunked prefill it must hold the longest prompt."""
    given = args.max_num_batched_tokens
    if args.enable_chunked_prefill:
        return given or _NUM_BATCHED_TOKENS[usage]
    if given is not None and given < max_model_len:
        raise ConfigError(
            f"max_num_batched_tokens must be at least max_model_len ({max_model_len}) "
            f"without chunked prefill, got {given}"
        )
    return given or max(_NUM_BATCHED_TOKENS[usage], max_model_len)


def _step_timeout(args: EngineArgs) -> float:
    """An idle loop turns every half second, so less than a few of those would prove nothing."""
    if 0 < args.engine_step_timeout < _MIN_STEP_TIMEOUT_S:
        raise ConfigError(
            f"engine_step_timeout must be 0 or at least {_MIN_STEP_TIMEOUT_S:g} seconds, got {args.engine_step_timeout:g}"
        )
    return args.engine_step_timeout


def _parallel(args: EngineArgs) -> ParallelConfig:
    simulated = args.distributed_executor_backend == "simulated"
    return ParallelConfig(
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        executor="simulated" if simulated else "local",
        num_threads=args.num_threads,
        device=args.device,
    )
