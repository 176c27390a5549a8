"""An engine of words: it answers with the prompt's tokens in a loop, one token per step, so every expectation
is exact.
"""

from __future__ import annotations

import asyncio
import codecs
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from quire.config import EngineConfig
from quire.config.types import HFConfig, ModelConfig
from quire.engine.output_stream import OnNews, OutputStream
from quire.engine.stats import EngineStats
from quire.errors import EngineDeadError, InvalidRequestError, NotReadyError, PromptTooLongError
from quire.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from quire.pooling_params import Pooling
from quire.sampling_params import RequestOutputKind, SamplingParams

VOCAB_SIZE = 256
EOS = 4
"""In a prompt this byte makes the answer end after its echo."""
MAX_MODEL_LEN = 64
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class MockTextStream:
    """Joins bytes to characters; special tokens have no text."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Text of the characters that these tokens complete."""
        return self._utf8.decode(bytes(i for i in token_ids if i not in MockTokenizer.all_special_ids))

    def flush(self) -> str:
        """What is left."""
        return self._utf8.decode(b"", True)


class MockTokenizer:
    """One token per byte."""

    max_chars_per_token = 1
    special_tokens: ClassVar[dict[str, str]] = {}
    all_special_ids: ClassVar[frozenset[int]] = frozenset({1, EOS})
    chat_template = TEMPLATE
    chat_templates: ClassVar[dict[str, str]] = {"default": TEMPLATE}

    def encode(self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt") -> list[int]:
        """Bytes, after a 1 for the beginning of text."""
        return [1, *text.encode()] if add_special_tokens else list(text.encode())

    def encode_pair(self, first: str, second: str, max_tokens: int | None = None) -> tuple[list[int], list[int]]:
        """A 1 before each text."""
        ids = [[1, *text.encode()] for text in (first, second)]
        return [*ids[0], *ids[1]][:max_tokens], [*(0 for _ in ids[0]), *(1 for _ in ids[1])][:max_tokens]

    def encode_spans(
        self, text: str, add_special_tokens: bool = True, *, parameter: str = "prompt"
    ) -> list[tuple[int, int, int]]:
        """Each byte with the character that it belongs to."""
        spans = [(1, 0, 0)] if add_special_tokens else []
        for place, character in enumerate(text):
            spans += [(byte, place, place + 1) for byte in character.encode()]
        return spans

    def make_stream(self, context: Sequence[int] = (), **_: bool) -> MockTextStream:
        """A decoder for tokens that arrive one by one."""
        return MockTextStream()

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of bytes; the 1 shows unless it is skipped."""
        shown = [i for i in token_ids if i != 1 or not skip_special_tokens]
        return bytes(shown).decode(errors="replace")

    def decode_token(self, token_id: int) -> str:
        """Text of one byte."""
        return bytes([token_id]).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The byte itself."""
        return bytes([token_id])

    def id_to_token(self, token_id: int) -> str | None:
        """A name for the byte."""
        return f"<{token_id}>"


def make_config(**changes: Any) -> EngineConfig:
    """A configuration of no checkpoint."""
    hf = HFConfig("Mock", "mock", VOCAB_SIZE, 8, 8, 1, 1, 1, 8, MAX_MODEL_LEN)
    fields: dict[str, Any] = {
        "model": "mock",
        "path": "",
        "tokenizer_path": "",
        "hf": hf,
        "dtype": "float32",
        "max_model_len": MAX_MODEL_LEN,
        "served_model_names": ("mock", "alias/two"),
        "chat_template": TEMPLATE,
    }
    return EngineConfig(model=ModelConfig(**fields | changes))


class _MockStream:
    """Reads the steps in a task; keeps the outputs that nobody took, and joins them as the engine would."""

    def __init__(
        self, engine: MockEngine, request_id: str, steps: AsyncIterator[RequestOutput], on_news: OnNews
    ) -> None:
        self._engine = engine
        self._request_id = request_id
        self._waiting: list[RequestOutput] = []
        self._on_news = on_news
        self._task = asyncio.create_task(self._read(steps))
        engine.running.add(request_id)

    async def _read(self, steps: AsyncIterator[RequestOutput]) -> None:
        async for output in steps:
            self._waiting.append(output)
            if output.finished:
                self._engine.running.discard(self._request_id)
            self._on_news()
            while (
                self._waiting and self._engine.step_s == 0
            ):  # in step with the reader, so that nothing is joined
                await asyncio.sleep(0)

    def take(self) -> RequestOutput:
        """All that nobody took yet."""
        waiting, self._waiting = self._waiting, []
        joined = waiting[-1]
        for choice in joined.outputs:
            before = [output.outputs[choice.index] for output in waiting[:-1]]
            choice.text = "".join(part.text for part in before) + choice.text
            choice.token_ids = sum((part.token_ids for part in before), []) + choice.token_ids
            if choice.logprobs is not None:
                choice.logprobs = sum((part.logprobs or [] for part in before), []) + choice.logprobs
        return joined

    def close(self) -> None:
        """Abort what has not finished."""
        self._task.cancel()
        if self._request_id in self._engine.running:
            self._engine.running.discard(self._request_id)
            self._engine.aborted.append(self._request_id)


Ending = tuple[FinishReason | None, str | None]
"""Finish reason and stop string."""


def _cut(tokens: list[int], params: SamplingParams) -> tuple[list[int], Ending]:
    """The tokens up to EOS or the first stop string, and why they end there."""
    for end in range(1, len(tokens) + 1):
        if tokens[end - 1] == EOS:
            return tokens[:end], ("stop", None)
        for stop in params.stop:
            if params.include_stop_str_in_output and bytes(tokens[:end]).endswith(stop.encode()):
                return tokens[:end], ("stop", stop)
    return tokens, ("length", None)


class MockEngine:
    """Implements what the server sees of an engine."""

    def __init__(self, step_s: float = 0.0, *, joins_characters: bool = False, **config: Any) -> None:
        self.config = make_config(**config)
        self.tokenizer = MockTokenizer()
        self.max_model_len = MAX_MODEL_LEN
        self.step_s = step_s
        self.is_dead = self.is_down = self.is_shut_down = False
        self.fail_after: int | None = None
        self.joins_characters = joins_characters
        """Whether text waits for whole characters, as a real engine's does; else each token shows its own bytes."""
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.seen: list[tuple[Any, SamplingParams, int, str | None]] = []
        self.tenants: list[str] = []
        """One for each of `seen`."""

    async def open(
        self,
        prompt: str | list[int],
        sampling_params: SamplingParams,
        request_id: str,
        on_news: OnNews,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        add_special_tokens: bool = True,
    ) -> OutputStream:
        """Echo the prompt's bytes, again and again, until max_tokens."""
        if self.is_dead:
            raise EngineDeadError("the engine process is gone")
        self.seen.append((prompt, sampling_params, priority, cache_salt))
        self.tenants.append(tenant)
        ids = self.tokenizer.encode(prompt, add_special_tokens) if isinstance(prompt, str) else prompt
        self._check(ids, sampling_params)
        steps = self._steps(request_id, prompt, ids, sampling_params)
        return _MockStream(self, request_id, steps, on_news)

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        for token in ids:
            if token >= VOCAB_SIZE:
                raise InvalidRequestError(
                    f"prompt must hold token ids in [0, {VOCAB_SIZE}), got {token}", parameter="prompt"
                )
        if len(ids) >= MAX_MODEL_LEN:
            raise PromptTooLongError(
                f"This model's maximum context length is {MAX_MODEL_LEN} tokens. "
                f"However, your prompt contains "
                f"{len(ids)} tokens.",
                parameter="prompt",
                num_tokens=len(ids),
                max_model_len=MAX_MODEL_LEN,
            )
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(params, name) or 0) > self.config.model.max_logprobs:
                raise InvalidRequestError(f"{name} must be at most 20", parameter=name)
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            for token in getattr(params, name) or ():
                if token >= VOCAB_SIZE:
                    raise InvalidRequestError(
                        f"{name} must hold token ids in [0, {VOCAB_SIZE})", parameter=name
                    )

    async def _steps(
        self, request_id: str, prompt: Any, ids: list[int], params: SamplingParams
    ) -> AsyncIterator[RequestOutput]:
        if params.pooling is not None:
            await asyncio.sleep(self.step_s)
            yield self._pooled(request_id, prompt, ids, params.pooling)
            return
        room = MAX_MODEL_LEN - len(ids)
        count = min(params.max_tokens or room, room)
        source = [token for token in ids if token > 1] or [65]
        tokens, ending = _cut([source[i % len(source)] for i in range(count)], params)
        delta = params.output_kind == RequestOutputKind.DELTA
        stream = self.tokenizer.make_stream()
        for step in range(len(tokens)):
            await asyncio.sleep(self.step_s)
            done = step == len(tokens) - 1
            failed = self.fail_after is not None and step >= self.fail_after
            if failed or delta or done:
                part = tokens[step : step + 1] if delta else tokens[: step + 1]
                text = bytes(part).decode(errors="replace")
                if self.joins_characters:
                    text = stream.push(part) + (stream.flush() if done else "")
                end = ("error", None) if failed else ending if done else (None, None)
                yield self._output(request_id, prompt, ids, params, part, text, end)
            if failed:
                return

    def _pooled(self, request_id: str, prompt: Any, ids: list[int], pooling: Pooling) -> RequestOutput:
        """What the last token is, how many there are, and 1; of a classifier, the logits 0 (and 1)."""
        numbers = [float(ids[-1]), float(len(ids)), 1.0][: pooling.dimensions]
        if pooling.classifies:
            numbers = [0.0, 1.0][: self.config.model.pooling.num_labels]
        if pooling.normalize:
            length = sum(number * number for number in numbers) ** 0.5
            numbers = [number / length for number in numbers]
        end = CompletionOutput(index=0, text="", token_ids=[], finish_reason="stop")
        pooled = struct.pack(f"<{len(numbers)}f", *numbers)
        text = prompt if isinstance(prompt, str) else None
        return RequestOutput(request_id, text, ids, [end], True, metrics=RequestMetrics(queued_s=0.001), pooled=pooled)

    def _output(
        self,
        request_id: str,
        prompt: Any,
        ids: list[int],
        params: SamplingParams,
        part: list[int],
        text: str,
        end: Ending,
    ) -> RequestOutput:
        choices = [
            CompletionOutput(
                index=index,
                text=text,
                token_ids=part,
                cumulative_logprob=None if params.logprobs is None else -0.5 * len(part),
                logprobs=None
                if params.logprobs is None
                else [self._logprobs(t, params.logprobs) for t in part],
                finish_reason=end[0],
                stop_reason=end[1],
            )
            for index in range(params.n)
        ]
        prompt_logprobs = None
        if params.prompt_logprobs is not None:
            prompt_logprobs = [None, *(self._logprobs(t, params.prompt_logprobs) for t in ids[1:])]
        return RequestOutput(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=ids,
            outputs=choices,
            finished=end[0] is not None,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=0,
            metrics=RequestMetrics(queued_s=0.001, time_to_first_token_s=0.002),
            error="the worker broke" if end[0] == "error" else None,
        )

    def _logprobs(self, token: int, num_top: int) -> dict[int, Logprob]:
        """The token itself at -0.5, then X at -inf, then Y, ..."""
        top = {88 + i: Logprob(float("-inf"), i + 2, chr(88 + i)) for i in range(max(0, num_top - 1))}
        return {token: Logprob(-0.5, 1, self.tokenizer.decode_token(token)), **top}

    async def abort(self, request_id: str) -> None:
        """Not needed: closing the iterator aborts."""

    def stats(self) -> EngineStats:
        """How many run."""
        return EngineStats(num_running=len(self.running))

    async def reset_prefix_cache(self) -> bool:
        """Nothing is cached."""
        return not self.running

    async def shutdown(self) -> None:
        """From here on nothing is served; takes a moment, as the real one."""
        await asyncio.sleep(0)
        self.is_dead = self.is_shut_down = True

    async def health(self) -> None:
        """Raises when dead."""
        if self.is_dead:
            raise EngineDeadError("the engine process is gone")

    async def ready(self) -> None:
        """Raises when dead, or down for the moment."""
        await self.health()
        if self.is_down:
            raise NotReadyError("the engine is being started again")
