"""`LLM` and the engine process over a small real model: the same request gives the same tokens."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from quire import LLM, AsyncLLMEngine, EngineArgs, SamplingParams
from quire.sampling_params import BeamSearchParams, RequestOutputKind
from tests.engine.test_async_engine import collect
from tests.shared_data import shared

PROMPTS = ["Once upon a time", "Lily went to the park", "The dog", "Tom and Mia had a big red ball. One day"]
DRAWN = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=14, seed=11, ignore_eos=True)


@pytest.fixture(scope="module")
def stories() -> Path:
    """The checkpoint's folder."""
    return shared("models/stories260K")


@pytest.fixture(scope="module")
def llm(stories: Path) -> LLM:
    """One loaded model for the tests that need no options of their own."""
    return LLM(str(stories), num_gpu_blocks_override=256, max_logprobs=-1)


def token_ids(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_greedy_tokens_and_logprobs_are_the_golden_ones(llm, stories):
    rows = [json.loads(line) for line in (stories / "golden_greedy_fp32.jsonl").read_text().splitlines()][:6]
    params = SamplingParams(temperature=0, max_tokens=32, logprobs=0, ignore_eos=True)
    prompts = [{"prompt_token_ids": row["prompt_ids"]} for row in rows]
    for row, output in zip(rows, llm.generate(prompts, params), strict=True):
        completion = output.outputs[0]
        assert completion.token_ids == row["output_ids"][:32]
        chosen = [
            entry[token].logprob
            for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        assert chosen == pytest.approx(row["output_logprobs"][:32], abs=1e-4)
        assert completion.cumulative_logprob == pytest.approx(sum(chosen))


def test_tokens_do_not_depend_on_the_batch(llm):
    together = token_ids(llm.generate(PROMPTS, DRAWN))
    llm.reset_prefix_cache()
    alone = [token_ids(llm.generate(prompt, DRAWN))[0] for prompt in PROMPTS]
    assert together == alone
    assert token_ids(llm.generate(PROMPTS, DRAWN)) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 5, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 8, "block_size": 8, "max_model_len": 64},
        {
            "num_gpu_blocks_override": 8,
            "block_size": 8,
            "max_model_len": 64,
            "preemption_mode": "swap",
            "swap_space": 0.01,
        },
    ],
    ids=["chunked", "preempted", "swapped"],
)
def test_tokens_do_not_depend_on_the_schedule(llm, stories, options):
    small = LLM(str(stories), **{"num_gpu_blocks_override": 64, **options})
    assert token_ids(small.generate(PROMPTS, DRAWN)) == token_ids(llm.generate(PROMPTS, DRAWN))
    assert (small.llm_engine.stats().total_preemptions > 0) == ("block_size" in options)


def test_a_sequence_of_n_is_the_request_with_its_seed(llm):
    (several,) = llm.generate(PROMPTS[0], DRAWN.clone(n=3))
    alone = [llm.generate(PROMPTS[0], DRAWN.clone(seed=11 + index))[0] for index in range(3)]
    assert [completion.token_ids for completion in several.outputs] == token_ids(alone)


def test_streams_join_to_the_final_text(llm):
    params = DRAWN.clone(stop=["the"], max_tokens=30)
    final = [output.outputs[0].text for output in llm.generate(PROMPTS, params)]
    joined = dict.fromkeys(range(len(PROMPTS)), "")
    first: int | None = None
    for output in llm.generate(PROMPTS, params.clone(output_kind=RequestOutputKind.DELTA), stream=True):
        first = int(output.request_id) if first is None else min(first, int(output.request_id))
        joined[int(output.request_id) - first] += output.outputs[0].text
    assert list(joined.values()) == final
    assert all("the" not in text for text in final)


def test_logprobs_have_the_documented_shapes(llm):
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=2)
    (output,) = llm.generate("Once upon a time", params)
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert token in entry and 2 <= len(entry) <= 3
    for token, entry in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
        assert entry[token].rank == 1 and len(entry) == 3
        assert [each.rank for each in entry.values()] == [1, 2, 3]
        assert entry[token].decoded_token == llm.get_tokenizer().decode_token(token)


def test_all_logprobs_sum_to_one(llm):
    (output,) = llm.generate("Once", SamplingParams(temperature=0, max_tokens=1, logprobs=-1))
    (entry,) = output.outputs[0].logprobs
    assert len(entry) == 512
    assert sum(math.exp(each.logprob) for each in entry.values()) == pytest.approx(1.0, abs=1e-4)


def test_a_wider_beam_is_never_less_likely(llm):
    greedy, *wider = [
        llm.beam_search(PROMPTS[:2], BeamSearchParams(beam_width=width, max_tokens=8, ignore_eos=True))
        for width in (1, 4, 12)
    ]
    expected = llm.generate(PROMPTS[:2], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    for index, output in enumerate(expected):
        best = greedy[index].sequences[0]
        assert best.tokens == output.prompt_token_ids + output.outputs[0].token_ids
        for outputs in wider:
            scores = [beam.cum_logprob for beam in outputs[index].sequences]
            assert scores == sorted(scores, reverse=True)
            assert scores[0] >= best.cum_logprob - 1e-6


def test_chat_without_a_template_names_the_remedy(llm):
    with pytest.raises(Exception, match="template"):
        llm.chat([{"role": "user", "content": "hi"}])
    template = "{{ messages[0]['content'] }}"
    (output,) = llm.chat([{"role": "user", "content": "Once upon a time"}], DRAWN, chat_template=template)
    assert output.outputs[0].text


async def test_the_engine_process_gives_the_same_tokens(llm, stories):
    args = EngineArgs(model=str(stories), num_gpu_blocks_override=256)
    engine = await asyncio.to_thread(AsyncLLMEngine.from_engine_args, args, own_process=True)
    try:
        results = await asyncio.gather(*(collect(engine.generate(prompt, DRAWN)) for prompt in PROMPTS))
        assert [outputs[-1].outputs[0].token_ids for outputs in results] == token_ids(
            llm.generate(PROMPTS, DRAWN)
        )
    finally:
        await engine.shutdown()


def test_the_mission_of_a_first_user(stories):
    llm = LLM(
        model=str(stories),
        gpu_memory_utilization=0.9,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        block_size=16,
        swap_space=4,
        dtype="auto",
        tensor_parallel_size=1,
        enforce_eager=False,
        kv_cache_memory_bytes="16M",
    )
    outputs = llm.generate(
        ["Hello, my name is", "The future of AI is"], SamplingParams(temperature=0.8, top_p=0.95)
    )
    for output in outputs:
        assert isinstance(output.outputs[0].text, str) and len(output.outputs[0].token_ids) <= 16
