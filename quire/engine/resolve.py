"""From `EngineArgs` to `EngineConfig`: finds the model, reads its
configuration, and settles every option left open.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any, cast

import msgspec

from quire import platform
from quire.config.engine_args import QUANTIZATIONS_AT_LOAD, EngineArgs
from quire.config.hf import architecture_of, config_of, generation_defaults
from quire.config.quantization import settle_quantization
from quire.config.rope import context_length
from quire.config.types import (
    CacheConfig,
    EngineConfig,
    HFConfig,
    LoadConfig,
    MediaConfig,
    ModelConfig,
    ParallelConfig,
    PoolingConfig,
    PreemptionMode,
    SchedulerConfig,
    SchedulingPolicy,
)
from quire.engine.find_pooling import find_pooling, served_length
from quire.errors import ConfigError, InvalidRequestError, describe
from quire.loader.configuration import checkpoint_in, is_gguf, read_checkpoint_fields
from quire.loader.hub import BUILTIN_MODELS, resolve_model
from quire.log import get_logger, warn_once
from quire.models import ModelRegistry
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
_LEAST_SHARED_STEP = {"cpu": 128, "gpu": 768}
"""A step costs something however short it is: on a GPU about as much as a thousand tokens."""
_MIN_STEP_TIMEOUT_S = 2.0
_DOMAIN = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|\[?[0-9a-fA-F:.]+\]?")


def resolve_config(args: EngineArgs, *, offline: bool) -> EngineConfig:
    """Every option settled. Raises ConfigError, HubError, ModelLoadError or UnsupportedModelError."""
    path = resolve_model(
        _model_name(args),
        revision=args.revision,
        download_dir=args.download_dir,
        token=args.hf_token,
        with_code=args.trust_remote_code,
    )
    path = checkpoint_in(path, args.load_format)
    hf, model_impl = read_model(path, args)
    pooling = find_pooling(args, hf, Path(path))
    max_model_len = _max_model_len(args, hf, None if pooling is None else served_length(Path(path)))
    if pooling is not None and pooling.is_encoder:
        args = _for_encoder(args)
    return EngineConfig(
        model=_model(args, Path(path), hf, model_impl, max_model_len, pooling),
        load=LoadConfig(
            args.load_format, args.download_dir, args.revision, args.tokenizer_revision, args.hf_token
        ),
        cache=_cache(args),
        scheduler=_scheduler(args, max_model_len, "offline" if offline else "server"),
        parallel=_parallel(args),
        media=_media(args),
        disable_log_stats=args.disable_log_stats,
        step_timeout_s=_step_timeout(args),
    )


def _model_name(args: EngineArgs) -> str:
    return DEFAULT_MODEL if args.model is None else args.model


# -- the model -----------------------------------------------------------------------------------------------


def read_model(path: str, args: EngineArgs) -> tuple[HFConfig, str]:
    """(configuration of the checkpoint at `path`, `quire` or `transformers`: what will compute it).

    Raises UnsupportedModelError for an architecture that does not run so.
    """
    fields = read_checkpoint_fields(path, args.hf_overrides)
    architecture, _ = architecture_of(fields)
    if is_gguf(path) and args.model_impl == "transformers":
        raise ConfigError("model_impl transformers needs a Hugging Face checkpoint folder, but the model is a GGUF file")
    wants_own = args.model_impl in ("quire", "vllm") or is_gguf(path)
    if wants_own or (args.model_impl == "auto" and ModelRegistry.has(architecture)):
        ModelRegistry.check(architecture)
        return config_of(fields, Path(path)), "quire"
    # Loads torch and transformers.
    from quire.models.transformers_backend.classes import read_transformers_config

    hf = read_transformers_config(path, args.hf_overrides, args.trust_remote_code)
    _log.info("architecture %s runs through transformers, on Quire's cache and linear layers", architecture)
    return hf, "transformers"


def _model(
    args: EngineArgs,
    path: Path,
    hf: HFConfig,
    model_impl: str,
    max_model_len: int,
    pooling: PoolingConfig | None,
) -> ModelConfig:
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
        model_impl=model_impl,
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
        pooling=pooling,
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


def _for_encoder(args: EngineArgs) -> EngineArgs:
    """A prompt is one step, since every token sees all others; and so no beginning of it serves another prompt."""
    return dataclasses.replace(args, enable_chunked_prefill=False, enable_prefix_caching=False)


def _max_model_len(args: EngineArgs, hf: HFConfig, served: int | None) -> int:
    """`served`: what the model is meant for, unless the user says otherwise."""
    limit = context_length(hf)
    if args.max_model_len is not None and args.max_model_len > limit:
        raise ConfigError(
            f"max_model_len must be at most {limit}, the model's context length, got {args.max_model_len}"
        )
    return args.max_model_len or min(limit, served or limit)


def _dtype(args: EngineArgs, hf: HFConfig, path: Path) -> str:
    """The dtype asked for, or with `auto` the checkpoint's. On a CPU what a quantized checkpoint leaves in float16 becomes
    bfloat16, which is as small, more exact than what is quantized, and faster in attention.
    """
    name = hf.dtype if args.dtype == "auto" else _DTYPE_NAMES.get(args.dtype, args.dtype)
    if may_use_gpu(args.device):
        return name
    if name == "float16" and args.dtype == "auto" and hf.quantization is not None and _has_kernels():
        _log.info("dtype auto: what this quantized checkpoint leaves in float16 is kept as bfloat16 on this CPU")
        return "bfloat16"
    if name in ("bfloat16", "float16") and args.dtype == "auto" and not _has_kernels():
        return _widened(hf, path)
    return name


def _has_kernels() -> bool:
    """Whether the C++ kernels, which widen weights of 16 bits in registers, were built."""
    return importlib.util.find_spec("quire._cpu") is not None


def _widened(hf: HFConfig, path: Path) -> str:
    """float32 if it fits: the reference ops would otherwise widen weights of 16 bits anew in every step."""
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
        least_shared_step=_LEAST_SHARED_STEP["gpu" if may_use_gpu(args.device) else "cpu"],
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


def _media(args: EngineArgs) -> MediaConfig:
    """Which images may come from where. The folder must exist: a misspelt one would look like a rule."""
    limits, folder = args.limit_mm_per_prompt or {}, args.allowed_local_media_path
    count = limits.get("image")
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 0
    if set(limits) - {"image"} or not (count is None or is_count):
        raise ConfigError(f'limit_mm_per_prompt must be {{"image": a number of at least 0}}, got {describe(limits)}')
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"allowed_local_media_path must be a folder, got {describe(folder)}")
    domains = args.allowed_media_domains or []
    domains = [domains] if isinstance(domains, str) else domains
    for domain in domains:
        if not isinstance(domain, str) or not _DOMAIN.fullmatch(domain):
            raise ConfigError(
                f"allowed_media_domains must hold hosts such as example.org, *.example.org or *, got {describe(domain)}"
            )
    return MediaConfig(count, folder, tuple(domain.lower() for domain in domains))


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
