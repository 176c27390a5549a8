"""An executor without a model, a tokenizer of bytes, and the engine configuration that goes with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import decoders, pre_tokenizers

from quire.batch import NewRequest, RequestResult, ScheduledBatch, ScheduledRequest, StepResult, TokenLogprobs
from quire.config.types import CacheConfig, EngineConfig, HFConfig, KVCacheSpec, ModelConfig, SchedulerConfig
from quire.sampling_params import SamplingParams

BOS, EOS = 256, 257
VOCAB_SIZE = 260
BLOCK_SIZE = 4

Script = Callable[[NewRequest, int], int]
"""(request, number of output tokens so far) -> next token."""


def write_byte_tokenizer(folder: Path) -> Path:
    """A tokenizer whose token ids are the bytes of the text, with <s> and </s>; returns the folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = {char: byte for byte, char in _byte_chars().items()}
    vocab = {char: order[char] for char in alphabet}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


def _byte_chars() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(rest)}}


def make_config(folder: Path, *, max_model_len: int = 64, **scheduler: object) -> EngineConfig:
    """A configuration for the fake model whose tokenizer is in `folder`."""
    hf = HFConfig("Fake", "fake", VOCAB_SIZE, 8, 8, 1, 1, 1, 8, max_model_len, eos_token_ids=(EOS,))
    model = ModelConfig("fake", str(folder), str(folder), hf, "float32", max_model_len, ("fake",))
    limits = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": max_model_len, **scheduler}
    return EngineConfig(
        model,
        cache=CacheConfig(block_size=BLOCK_SIZE),
        scheduler=SchedulerConfig(**limits),
        disable_log_stats=True,
    )


def says(text: str, then: int = EOS) -> Script:
    """Every request is answered with this text, then with one token for ever."""
    token_ids = list(text.encode())
    return lambda request, index: token_ids[index] if index < len(token_ids) else then


def counts(request: NewRequest, index: int) -> int:
    """The last prompt token plus one, and so on, among the letters; depends on nothing else."""
    last = request.token_ids[request.num_prompt_tokens - 1]
    return ord("a") + (last + 1 + index) % 26


@dataclass
class FakeExecutor:
    """Follows a script. `fail_steps` holds exceptions that the next steps raise."""

    script: Script = counts
    num_blocks: int = 64
    step_s: float = 0.0
    fail_steps: list[Exception] = field(default_factory=list)
    fail_requests: dict[str, str] = field(default_factory=dict)
    distribution: Callable[[list[int]], list[float]] | None = None
    """Log-probabilities of the next token after these tokens; replaces the script."""

    def __post_init__(self) -> None:
        self.kv = KVCacheSpec(self.num_blocks, 0, BLOCK_SIZE, 1)
        self.known: dict[str, NewRequest] = {}
        self.num_outputs: dict[str, int] = {}
        self.batches: list[ScheduledBatch] = []
        self.is_shut_down = False

    def execute(self, batch: ScheduledBatch) -> StepResult:
        time.sleep(self.step_s)
        self.batches.append(batch)
        for request_id in batch.removed_request_ids:
            self.known.pop(request_id, None)
        for request in batch.new_requests:
            self.known[request.request_id] = request
            self.num_outputs[request.request_id] = len(request.token_ids) - request.num_prompt_tokens
        if self.fail_steps:
            raise self.fail_steps.pop(0)
        return StepResult(batch.step_id, [self._result(entry) for entry in batch.requests])

    def _result(self, entry: ScheduledRequest) -> RequestResult:
        request = self.known[entry.request_id]
        if entry.request_id in self.fail_requests:
            return RequestResult(entry.request_id, error=self.fail_requests[entry.request_id])
        result = RequestResult(entry.request_id)
        if request.params.prompt_logprobs is not None:
            end = min(entry.num_computed_tokens + entry.num_tokens, request.num_prompt_tokens - 1)
            following = request.token_ids[entry.num_computed_tokens + 1 : end + 1]
            result.prompt_logprobs = [
                make_logprobs(token, request.params.prompt_logprobs) for token in following
            ]
        if entry.samples:
            index = self.num_outputs[entry.request_id]
            self.num_outputs[entry.request_id] += 1
            if self.distribution is not None:
                entries = rank(self.distribution(request.token_ids), request.params.logprobs or 1)
                result.token_ids, result.logprobs = entries.token_ids[:1], [entries]
                return result
            result.token_ids = [self.script(request, index)]
            if request.params.logprobs is not None:
                result.logprobs = [make_logprobs(result.token_ids[0], request.params.logprobs)]
        return result

    def call_all(self, method: str, *args: object) -> list[object]:
        return []

    def shutdown(self) -> None:
        self.is_shut_down = True


def make_logprobs(token_id: int, num: int) -> TokenLogprobs:
    """The token itself with probability one half, then its neighbours."""
    ids = [token_id, *((token_id + offset) % 256 for offset in range(1, num))]
    return TokenLogprobs(ids, [-0.5 * (i + 1) for i in range(len(ids))], list(range(1, len(ids) + 1)))


def rank(logprobs: list[float], num: int) -> TokenLogprobs:
    """The `num` likeliest tokens of a distribution."""
    best = sorted(range(len(logprobs)), key=lambda token_id: -logprobs[token_id])[:num]
    return TokenLogprobs(best, [logprobs[token_id] for token_id in best], list(range(1, num + 1)))


def greedy(**changes: object) -> SamplingParams:
    """Greedy parameters."""
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **changes})
