"""`EngineLoader`: from a checkpoint folder to an engine in a process of its own, and what it will take of the memory."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from quire.config import EngineConfig
from quire.config.engine_args import EngineArgs
from quire.config.rope import context_length
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.process_client import ProcessClient
from quire.engine.resolve import read_model
from quire.engine.text import load_text_side
from quire.errors import ModelLoadError
from quire.loader.configuration import checkpoint_in
from quire.server.checkpoint_facts import read_facts
from quire.server.models_dir import Checkpoint
from quire.tokenizer import Tokenizer

NUM_FULL_REQUESTS = 4
"""Requests of full length that a model's KV cache is made for, memory permitting."""
_MAX_KV_SHARE = 0.25
"""Of the memory of all models, what one KV cache may take beyond one request of full length."""
_BYTES_PER_ELEMENT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "fp8": 1.0, "fp8_e4m3": 1.0}
_QUANTIZED_BYTES = {"int8": 1.02, "int4": 0.57, "fp8": 1.02}
"""Per weight, scales included."""


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Options of one model's engine, and the memory that it will take."""

    args: EngineArgs
    num_bytes: int
    """Weights and KV cache. The process around them, some hundred MB, is not counted."""


class EngineStarter:
    """Starts engines in processes of their own, and keeps the tokenizers of the latest models."""

    def __init__(self) -> None:
        self._tokenizers = _Tokenizers()

    async def start(self, args: EngineArgs) -> AsyncLLMEngine:
        """Load a model, without blocking the event loop. Raises a QuireError."""
        return await _run_on_thread(lambda: self._start(args))

    def _start(self, args: EngineArgs) -> AsyncLLMEngine:
        config = args.create_engine_config()
        tokenizer = self._tokenizers.get(config)  # before the model: a missing one is said at once
        return AsyncLLMEngine(config, ProcessClient(config), tokenizer)


class EngineLoader:
    """Every model gets the same engine options, and a KV cache of its own size.

    Unless `kv_cache_memory_bytes` or `num_gpu_blocks_override` say otherwise, that is room for `num_parallel` requests of
    full length, at most a quarter of the memory of all models, at least one such request.
    """

    def __init__(
        self, args: EngineArgs, memory_bytes: int, num_parallel: int | None = None, context_length: int | None = None
    ) -> None:
        """`context_length`: longest prompt plus output, tokens, of models that could do more."""
        self._args = args if num_parallel is None else replace(args, max_num_seqs=args.max_num_seqs or num_parallel)
        self._memory_bytes = memory_bytes
        self._num_parallel = num_parallel or NUM_FULL_REQUESTS
        self._max_model_len = args.max_model_len or context_length
        self._starter = EngineStarter()

    def plan(self, checkpoint: Checkpoint) -> EnginePlan:
        """See `ModelLoader.plan`."""
        folder = str(checkpoint.folder)
        check_weights(folder, self._args.load_format)  # before others make room for it
        path = checkpoint_in(folder, self._args.load_format)
        limit = context_length(read_model(path, self._args)[0])
        args = replace(
            self._args,
            model=folder,
            served_model_name=checkpoint.name,
            max_model_len=min(limit, self._max_model_len or limit),
        )
        config = args.create_engine_config()
        weights = weight_bytes(config)
        kv = self._kv_bytes(config)
        if config.cache.num_blocks_override is None:
            args = replace(args, kv_cache_memory_bytes=kv)
        return EnginePlan(args, weights + kv)

    def _kv_bytes(self, config: EngineConfig) -> int:
        given = given_kv_bytes(config)
        if given is not None:
            return given
        one = kv_bytes(config, config.scheduler.max_model_len)
        return max(one, min(one * self._num_parallel, int(self._memory_bytes * _MAX_KV_SHARE) // one * one))

    async def load(self, plan: EnginePlan) -> AsyncLLMEngine:
        """See `ModelLoader.load`."""
        return await self._starter.start(plan.args)


class _Tokenizers:
    """The tokenizers of the latest models. To build a large one takes a second in which no other thread of this process
    runs (`tokenizers` holds the interpreter's lock), so a model that is loaded again must not build its own again.
    """

    _MAX = 8

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, float], Tokenizer | None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, config: EngineConfig) -> Tokenizer | None:
        """The tokenizer of a model; built anew when its files have changed. Raises ConfigError."""
        path = config.model.tokenizer_path
        facts = read_facts(path)
        key = path, facts.digest, facts.modified_at
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        tokenizer = load_text_side(config)
        with self._lock:
            self._kept[key] = tokenizer
            if len(self._kept) > self._MAX:
                self._kept.popitem(last=False)
        return tokenizer


def check_weights(folder: str, load_format: str) -> None:
    """Raises ModelLoadError for a folder without weights, unless none are wanted."""
    if read_facts(folder).num_parameters == 0 and load_format != "dummy":
        raise ModelLoadError(f"{folder} holds no weights (*.safetensors, *.bin or *.gguf)")


def given_kv_bytes(config: EngineConfig) -> int | None:
    """The size of the KV cache that the options state; None where they leave it open."""
    cache = config.cache
    if cache.num_blocks_override is not None:
        return cache.num_blocks_override * kv_bytes(config, cache.block_size)
    return cache.kv_cache_memory_bytes


def kv_bytes(config: EngineConfig, num_tokens: int) -> int:
    """Bytes of the KV cache blocks that hold that many tokens; `runner/kv_cache.py` reserves them, with torch."""
    hf, cache = config.model.hf, config.cache
    dtype = config.model.dtype if cache.kv_cache_dtype == "auto" else cache.kv_cache_dtype
    scale = 4 if dtype in ("int8", "fp8", "fp8_e4m3") else 0
    per_token = sum(size * _BYTES_PER_ELEMENT[dtype] + scale for size in hf.cached_vectors())
    num_blocks = -(-num_tokens // cache.block_size)
    return int(num_blocks * cache.block_size * hf.num_hidden_layers * per_token)


def weight_bytes(config: EngineConfig) -> int:
    """Memory of the weights as they will be kept."""
    model = config.model
    facts = read_facts(model.path)
    if model.hf.quantization is not None:
        return facts.num_bytes
    total = facts.num_parameters
    embedding = min(total, model.hf.vocab_size * model.hf.hidden_size * (1 if model.hf.tie_word_embeddings else 2))
    plain = _BYTES_PER_ELEMENT[model.dtype]
    each = _QUANTIZED_BYTES.get(model.quantization or "", plain)
    each_of_embedding = _QUANTIZED_BYTES.get(model.embedding_quantization or "", plain)
    return int((total - embedding) * each + embedding * each_of_embedding)


async def _run_on_thread(make: Any) -> Any:
    """The result of a blocking call. Unlike asyncio.to_thread, a server that is told to stop does not wait for it: the
    thread ends with this process, and the engine's process with it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = make()
        except Exception as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # the loop is closed: the server has stopped

    threading.Thread(target=work, name="quire-load", daemon=True).start()
    return await future
