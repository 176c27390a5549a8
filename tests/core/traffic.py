"""`Traffic`: one engine with a fake worker under traffic that a test chooses, and the check of everything at its end."""

from __future__ import annotations

from typing import Any

from quire.core.request import Request
from quire.errors import PromptTooLongError
from tests.core.fake_worker import FakeWorker, sample
from tests.core.harness import Engine, expected_output, make_request


class Traffic:
    """What can happen to an engine. The fake worker checks each batch, the engine each step, `finish` the outputs."""

    def __init__(
        self, config: dict[str, Any], num_drafts: int = 0, uses_parallel_copies: bool = False
    ) -> None:
        self.engine = Engine(**config)
        self.requests: dict[str, Request] = {}
        self.failed: set[str] = set()
        self.num_drafts = num_drafts
        self.num_proposals = 0
        self.uses_parallel_copies = uses_parallel_copies
        self.set_up(self.engine.worker)

    def set_up(self, worker: FakeWorker) -> None:
        """A worker as this traffic wants it."""
        worker.uses_parallel_copies = self.uses_parallel_copies
        worker.proposer = self.propose if self.num_drafts else None

    def propose(self, request_id: str, tokens: list[int]) -> list[int]:
        """Drafts that are all right every third time, and otherwise miss somewhere."""
        self.num_proposals += 1
        drafts = list(tokens)
        for _ in range(self.num_drafts):
            drafts.append(sample(self.requests[request_id].seed, drafts))
        drafts = drafts[len(tokens) :]
        if self.num_proposals % 3:
            drafts[self.num_proposals % self.num_drafts] += 1
        return drafts

    def arrive(
        self, prompt: list[int], max_tokens: int | None, *, seed: int, num_forks: int = 0, **fields: Any
    ) -> None:
        """A request, perhaps with forks."""
        parent_id = f"r{len(self.requests)}"
        for index in range(num_forks + 1):
            request = make_request(
                f"r{len(self.requests)}",
                prompt,
                max_tokens,
                seed=seed + index,
                arrival_time=float(len(self.requests)),
                fork_of=parent_id if index else None,
                eos_token_ids=[4],
                **fields,
            )
            try:
                self.engine.add(request)
            except PromptTooLongError as error:
                self.check_refusal(request, error)
                return
            self.requests[request.request_id] = request

    def check_refusal(self, request: Request, error: Exception) -> None:
        """Only what cannot run is refused."""
        config, slots = self.engine.config, self.engine.scheduler.blocks.num_slots
        fits_step = config.enable_chunked_prefill or request.num_tokens <= config.max_num_batched_tokens
        assert request.num_tokens >= min(config.max_model_len, slots) or not fits_step
        assert str(request.num_tokens) in str(error)

    def abort(self, request_id: str) -> None:
        """Between steps; the request may be finished already."""
        self.engine.abort(request_id, "unknown", request_id)
        assert request_id in self.engine.finished

    def abort_in_flight(self, request_id: str) -> None:
        """While the worker computes."""
        scheduler = self.engine.scheduler
        batch = scheduler.schedule()
        result = self.engine.worker.execute(batch)
        self.engine.abort(request_id)
        self.engine.note(scheduler.update(batch, result))

    def fail(self, request_id: str) -> None:
        """The worker answers the request's next step with an error."""
        self.engine.worker.failing.add(request_id)
        self.failed.add(request_id)

    def lose_worker(self) -> None:
        """The worker dies and comes back empty."""
        self.engine.worker = FakeWorker(self.engine.kv, failing=self.engine.worker.failing)
        self.set_up(self.engine.worker)
        self.engine.scheduler.restart()

    def finish(self) -> None:
        """All finish, all outputs are those of an undisturbed run, nothing is left behind."""
        scheduler = self.engine.scheduler
        self.engine.run(max_steps=20_000)
        assert self.engine.finished.keys() == self.requests.keys()
        for request in self.requests.values():
            self.check_output(request)
        assert scheduler.blocks.device.num_used == 0 and scheduler.blocks.host.num_used == 0
        assert scheduler.reset_prefix_cache()
        stats = scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0.0)
        assert stats.total_prefix_hit_tokens <= stats.total_prefix_queried_tokens

    def check_output(self, request: Request) -> None:
        """Tokens, finish reason and prompt logprobs of one finished request."""
        output = self.engine.outputs[request.request_id]
        reason = self.engine.finished[request.request_id].finish_reason
        expected = expected_output(request, request.max_num_tokens)
        assert output == request.output_token_ids
        if reason in ("abort", "error"):
            assert output == expected[: len(output)]
            assert reason == "abort" or request.request_id in self.failed
            return
        assert output == expected
        assert reason == ("stop" if output[-1] in request.stop_ids else "length")
        if request.params.prompt_logprobs and request.fork_of is None:
            reported = self.engine.prompt_logprobs.get(request.request_id, [])
            assert reported == [float(position) for position in range(request.num_prompt_tokens - 1)]
