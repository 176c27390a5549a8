"""Same request, same tokens: one workload under every schedule that the engine can take, each compared with the request alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from quire import LLM, CompletionOutput, EngineArgs, LLMEngine, RequestOutput, SamplingParams
from quire.ops import cpu
from tests.e2e.server_process import ServerProcess
from tests.equivalence.workload import GREEDY, MAX_TOKENS, MODES, SEEDED, Mode, assert_same, make_prompts

_extension, _reason = cpu.load()
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(_extension is None, reason=f"the reference ops are equal up to rounding only: {_reason}"),
]

MODEL = "folio"
VOCAB_SIZE = 4000
BASE = {
    "model": MODEL,
    "dtype": "float32",
    "max_model_len": 512,
    "num_gpu_blocks_override": 2048,
    "num_threads": 1,
}
PROMPTS = make_prompts(VOCAB_SIZE)
SEEDS = [1000 + 10 * i for i in range(len(PROMPTS))]

# Largest prompt 300 + 24 tokens: 21 blocks. 48 blocks hold two such requests and little else, so that a batch of 32 must preempt.
TINY_POOL = {"num_gpu_blocks_override": 48}

SCHEDULES = {
    "batched": {"enable_prefix_caching": False, "max_num_batched_tokens": 4096},
    "chunks-16": {"enable_prefix_caching": False, "max_num_batched_tokens": 16, "max_num_seqs": 8},
    "chunks-64": {"enable_prefix_caching": False, "max_num_batched_tokens": 64},
    "chunks-512": {"enable_prefix_caching": False, "max_num_batched_tokens": 512},
    "long-prefill-threshold": {"max_num_batched_tokens": 256, "long_prefill_token_threshold": 20},
    "cache-cold": {"enable_prefix_caching": True},
    "preempt-recompute": TINY_POOL | {"enable_prefix_caching": False, "preemption_mode": "recompute"},
    "preempt-recompute-cached": TINY_POOL | {"enable_prefix_caching": True, "preemption_mode": "recompute"},
    "preempt-swap": TINY_POOL
    | {"enable_prefix_caching": False, "preemption_mode": "swap", "swap_space": 0.5},
    "preempt-swap-cached": TINY_POOL
    | {"enable_prefix_caching": True, "preemption_mode": "swap", "swap_space": 0.5},
    "priority": TINY_POOL | {"scheduling_policy": "priority"},
    "block-size-32": {"block_size": 32},
}


def requests_of(mode: Mode, **changes: object) -> list[SamplingParams]:
    return [mode.params(i, **changes) for i in range(len(PROMPTS))]


def run(llm: LLM, mode: Mode, **changes: object) -> list[RequestOutput]:
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    return llm.generate(prompts, requests_of(mode, **changes), use_tqdm=False)


@pytest.fixture(scope="module")
def alone() -> dict[str, list[RequestOutput]]:
    """Every request by itself, no prefix cache, the whole prompt in one step."""
    with LLM(**BASE, enable_prefix_caching=False, max_num_batched_tokens=4096) as llm:
        return {
            mode.name: [
                llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0]
                for ids, params in zip(PROMPTS, requests_of(mode), strict=True)
            ]
            for mode in MODES
        }


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_does_not_change_tokens(schedule: str, alone: dict[str, list[RequestOutput]]) -> None:
    with LLM(**(BASE | SCHEDULES[schedule])) as llm:
        for mode in MODES:
            outputs = run(llm, mode)
            assert_same(alone[mode.name], outputs)
            if schedule.startswith("preempt"):
                assert any(output.metrics.num_preemptions for output in outputs), (
                    "the pool was not small enough to preempt"
                )


def test_hot_prefix_cache(alone: dict[str, list[RequestOutput]]) -> None:
    with LLM(**BASE, enable_prefix_caching=True) as llm:
        run(llm, GREEDY)
        for mode in MODES:
            outputs = run(llm, mode)
            assert_same(alone[mode.name], outputs)
            assert sum(output.num_cached_tokens for output in outputs) > 1000


def test_neighbours_aborted_midway(alone: dict[str, list[RequestOutput]]) -> None:
    """Every third request is aborted after some steps; the others do not notice."""
    for mode in (GREEDY, SEEDED):
        engine = LLMEngine.from_engine_args(EngineArgs(**(BASE | TINY_POOL)))
        for i, (ids, params) in enumerate(zip(PROMPTS, requests_of(mode), strict=True)):
            engine.add_request(str(i), {"prompt_token_ids": ids}, params)
        finished: dict[int, RequestOutput] = {}
        steps = 0
        while engine.has_unfinished_requests():
            steps += 1
            for output in engine.step():
                if output.finished:
                    finished[int(output.request_id)] = output
            if steps % 5 == 0 and (victim := 3 * (steps // 5)) < len(PROMPTS):
                engine.abort_request(str(victim))
        kept = [
            i
            for i in range(len(PROMPTS))
            if i in finished and finished[i].outputs[0].finish_reason == "length"
        ]
        assert len(kept) >= len(PROMPTS) * 2 // 3
        expected, actual = [alone[mode.name][i] for i in kept], [finished[i] for i in kept]
        assert_same(expected, actual)


FORKED = PROMPTS[:16]


@pytest.fixture(scope="module", params=[GREEDY, SEEDED], ids=lambda mode: mode.name)
def separate(request: pytest.FixtureRequest) -> tuple[Mode, list[RequestOutput]]:
    """Four sequences of each prompt, each a request of its own, with the seeds that n = 4 would use."""
    mode: Mode = request.param
    outputs = []
    with LLM(**BASE, enable_prefix_caching=False) as llm:
        for i, ids in enumerate(FORKED):
            own = [mode.params(i, seed=SEEDS[i] + child) for child in range(4)]
            done = [
                llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0].outputs[0]
                for params in own
            ]
            outputs.append(RequestOutput("", None, ids, done, finished=True))
    return mode, outputs


@pytest.mark.parametrize("pool", [{}, TINY_POOL], ids=["roomy", "tiny-pool"])
def test_forked_sequences_equal_separate_requests(
    separate: tuple[Mode, list[RequestOutput]], pool: dict
) -> None:
    """Sequence i of n = 4 is the request with seed + i."""
    mode, expected = separate
    params = [mode.params(i, n=4) for i in range(len(FORKED))]
    with LLM(**(BASE | pool)) as llm:
        forked = llm.generate([{"prompt_token_ids": ids} for ids in FORKED], params, use_tqdm=False)
    assert_same(expected, forked)


def post_all(url: str, bodies: list[dict]) -> list[dict]:
    """POST all bodies at once; the answers in their order."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: requests.post(url, json=body, timeout=120), bodies))
    assert [answer.status_code for answer in answers] == [200] * len(bodies)
    return [answer.json() for answer in answers]


def test_server_gives_the_same_tokens(alone: dict[str, list[RequestOutput]]) -> None:
    """Through the server: HTTP, tokens as ids, engine in its own process."""
    with ServerProcess(MODEL, "--dtype", "float32", "--max-model-len", "512", "--num-threads", "1") as server:
        for mode in (GREEDY, SEEDED):
            bodies = [
                {
                    "prompt": ids,
                    "max_tokens": MAX_TOKENS,
                    "temperature": mode.temperature,
                    "top_p": mode.top_p,
                    "seed": seed,
                    "ignore_eos": True,
                    "return_token_ids": True,
                }
                for ids, seed in zip(PROMPTS, SEEDS, strict=True)
            ]
            answers = post_all(f"{server.url}/v1/completions", bodies)
            for want, answer in zip(alone[mode.name], answers, strict=True):
                choice = answer["choices"][0]
                completion = CompletionOutput(
                    0, choice["text"], choice["token_ids"], finish_reason=choice["finish_reason"]
                )
                got = RequestOutput("", None, want.prompt_token_ids, [completion], True)
                assert_same([want], [got])
