"""`FakeWorker`: a worker without tensors. It models what every KV slot holds and checks each batch against it.

A slot's content is the whole token sequence up to it (as a chained hash), which is what a real KV entry depends on. Before a
request computes, its block table must read back exactly its own tokens [0, num_computed_tokens); nobody may write to a block
that another request reads. Sampling is a pure function of (seed, all tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from quire.batch import NewRequest, RequestResult, ScheduledBatch, ScheduledRequest, StepResult, TokenLogprobs
from quire.config.types import KVCacheSpec

Sampler = Callable[[int, list[int]], int]
Proposer = Callable[[str, list[int]], list[int]]
EMPTY = None
VOCAB_SIZE = 50


def sample(seed: int, token_ids: list[int]) -> int:
    """The next token: a pure function of the seed and every token before it."""
    return hash((seed, tuple(token_ids))) % VOCAB_SIZE


def slot_contents(token_ids: list[int], salt: object = None) -> list[int]:
    """What each position's KV slot holds: a hash of all tokens up to it."""
    contents, state = [], hash(("root", salt))
    for token_id in token_ids:
        state = hash((state, token_id))
        contents.append(state)
    return contents


@dataclass
class WorkerRequest:
    """What a worker keeps of a live request."""

    request: NewRequest
    token_ids: list[int]
    block_ids: list[int]
    salt: object = None


@dataclass
class FakeWorker:
    """Executes batches; raises AssertionError when a batch is wrong."""

    kv: KVCacheSpec
    sampler: Sampler = sample
    proposer: Proposer | None = None
    failing: set[str] = field(default_factory=set)
    """Requests that answer their next step with an error."""
    uses_parallel_copies: bool = False
    """Read all sources of block_copies before the first write, as a gather and scatter would."""

    def __post_init__(self) -> None:
        empty = [EMPTY] * self.kv.block_size
        self.device: list[list[int | None]] = [list(empty) for _ in range(self.kv.num_blocks)]
        self.host: list[list[int | None]] = [list(empty) for _ in range(self.kv.num_host_blocks)]
        self.requests: dict[str, WorkerRequest] = {}
        self.num_steps = 0
        self.num_tokens_computed = 0
        self.num_block_copies = 0
        self.num_swaps = 0

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Do a batch in the documented order and sample."""
        self._drop_and_add(batch)
        self._copy(batch)
        for entry in batch.requests:
            self._extend_table(entry)
        self._check_writers(batch)
        for entry in batch.requests:
            self._check_reads(entry)
        results = [self._compute(entry) for entry in batch.requests]
        drafts = self._propose(batch, results)
        self.num_steps += 1
        self.num_tokens_computed += batch.num_tokens
        return StepResult(batch.step_id, results, drafts)

    def call_all(self, method: str, *args: object) -> list[object]:
        """There is no worker process to call."""
        return []

    # -- the batch -------------------------------------------------------------------------------------------

    def _drop_and_add(self, batch: ScheduledBatch) -> None:
        assert len(set(batch.removed_request_ids)) == len(batch.removed_request_ids)
        for request_id in batch.removed_request_ids:
            del self.requests[request_id]
        for new in batch.new_requests:
            assert new.request_id not in self.requests
            salt = str((new.extra or {}).get("extra_keys"))
            self.requests[new.request_id] = WorkerRequest(new, list(new.token_ids), list(new.block_ids), salt)

    def _copy(self, batch: ScheduledBatch) -> None:
        for copies in (batch.swap_out, batch.swap_in, batch.block_copies):
            destinations = [destination for _, destination in copies]
            assert len(set(destinations)) == len(destinations), "two copies to one block"
        for device_block, host_block in batch.swap_out:
            self.host[host_block] = list(self.device[device_block])
        for host_block, device_block in batch.swap_in:
            assert device_block != 0
            self.device[device_block] = list(self.host[host_block])
        before = [list(block) for block in self.device] if self.uses_parallel_copies else self.device
        for source, destination in batch.block_copies:
            assert destination != 0
            self.device[destination] = list(before[source])
        self.num_block_copies += len(batch.block_copies)
        self.num_swaps += len(batch.swap_out) + len(batch.swap_in)

    def _extend_table(self, entry: ScheduledRequest) -> None:
        request = self.requests[entry.request_id]
        for index, block in entry.replaced_blocks:
            request.block_ids[index] = block
        request.block_ids += entry.new_block_ids
        assert 0 not in request.block_ids
        num_slots = len(request.block_ids) * self.kv.block_size
        assert entry.num_computed_tokens + entry.num_tokens <= num_slots

    def _check_writers(self, batch: ScheduledBatch) -> None:
        """A block that is written in this step is in the table of its writer only."""
        owners: dict[int, set[str]] = {}
        for request_id, request in self.requests.items():
            for block in request.block_ids:
                owners.setdefault(block, set()).add(request_id)
        size = self.kv.block_size
        for entry in batch.requests:
            start, end = entry.num_computed_tokens, entry.num_computed_tokens + entry.num_tokens
            for index in range(start // size, -(-end // size)):
                block = self.requests[entry.request_id].block_ids[index]
                assert owners[block] == {entry.request_id}, (
                    f"{entry.request_id} writes to shared block {block}"
                )

    def _check_reads(self, entry: ScheduledRequest) -> None:
        """The table reads back exactly the request's own tokens [0, num_computed_tokens)."""
        request = self.requests[entry.request_id]
        expected = slot_contents(request.token_ids[: entry.num_computed_tokens], request.salt)
        size = self.kv.block_size
        actual = [
            self.device[request.block_ids[i // size]][i % size] for i in range(entry.num_computed_tokens)
        ]
        assert actual == expected, f"{entry.request_id}: the KV cache holds something else"

    def _compute(self, entry: ScheduledRequest) -> RequestResult:
        request = self.requests[entry.request_id]
        start, end = entry.num_computed_tokens, entry.num_computed_tokens + entry.num_tokens
        tokens = request.token_ids + entry.draft_token_ids
        assert entry.num_tokens > 0 and end <= len(tokens)
        assert entry.samples == (end == len(tokens)) and (entry.samples or not entry.draft_token_ids)
        contents = slot_contents(tokens[:end], request.salt)
        for position in range(start, end):
            block = request.block_ids[position // self.kv.block_size]
            self.device[block][position % self.kv.block_size] = contents[position]
        if entry.request_id in self.failing:
            self.failing.discard(entry.request_id)
            self._scramble(request, start, end)
            return RequestResult(entry.request_id, error="the fake worker failed")
        sampled = self._sample(request, entry.draft_token_ids) if entry.samples else []
        request.token_ids += sampled
        return RequestResult(
            entry.request_id, sampled, prompt_logprobs=self._prompt_logprobs(request, start, end)
        )

    def _sample(self, request: WorkerRequest, drafts: list[int]) -> list[int]:
        """The accepted drafts and the token after them."""
        tokens, sampled = list(request.token_ids), []
        for draft in [*drafts, None]:
            token_id = self.sampler(request.request.seed, tokens)
            sampled.append(token_id)
            tokens.append(token_id)
            if token_id != draft:
                break
        return sampled

    def _scramble(self, request: WorkerRequest, start: int, end: int) -> None:
        """A failed request leaves nonsense in the slots it was to write."""
        for position in range(start, end):
            self.device[request.block_ids[position // self.kv.block_size]][position % self.kv.block_size] = -1

    def _prompt_logprobs(self, request: WorkerRequest, start: int, end: int) -> list[TokenLogprobs] | None:
        if request.request.params.prompt_logprobs is None:
            return None
        last = min(end, request.request.num_prompt_tokens - 1)
        return [TokenLogprobs([request.token_ids[i + 1]], [-float(i)], [1]) for i in range(start, last)]

    def _propose(self, batch: ScheduledBatch, results: list[RequestResult]) -> dict[str, list[int]] | None:
        if self.proposer is None:
            return None
        sampled = [
            entry.request_id
            for entry, result in zip(batch.requests, results, strict=True)
            if result.token_ids
        ]
        return {
            request_id: self.proposer(request_id, self.requests[request_id].token_ids)
            for request_id in sampled
        }
