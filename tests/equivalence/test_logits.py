"""Bit-exact logits in every precision: hashes of all sampled rows, each request alone against the hardest schedules."""

from __future__ import annotations

import pytest

from quire import LLM, RequestOutput
from quire.ops import cpu
from tests.equivalence.workload import GREEDY, SEEDED, Hashes, Mode, assert_same, logits_hashes, make_prompts

_extension, _reason = cpu.load()
pytestmark = pytest.mark.skipif(
    _extension is None, reason=f"the reference ops are equal up to rounding only: {_reason}"
)

PRECISIONS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "float32-kv-int8": {"dtype": "float32", "kv_cache_dtype": "int8"},
    "int8-kv-float32": {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "float32"},
    "fp8-kv-fp8": {"dtype": "bfloat16", "quantization": "fp8", "kv_cache_dtype": "fp8"},
    "int4-kv-int8": {"dtype": "bfloat16", "quantization": "int4", "kv_cache_dtype": "int8"},
}
TINY_POOL = {"num_gpu_blocks_override": 48}
SCHEDULES = {
    "batched": {"enable_prefix_caching": False, "max_num_batched_tokens": 4096},
    "chunks of 16": {"enable_prefix_caching": False, "max_num_batched_tokens": 16, "max_num_seqs": 8},
    "prefix cache, two threads": {"enable_prefix_caching": True, "num_threads": 2},
    "preempted": TINY_POOL | {"enable_prefix_caching": False, "preemption_mode": "recompute"},
    "swapped": TINY_POOL | {"enable_prefix_caching": True, "preemption_mode": "swap", "swap_space": 0.5},
}
BASE = {"model": "folio", "max_model_len": 512, "num_gpu_blocks_override": 2048, "num_threads": 1}
PROMPTS = make_prompts(4000)[:20]


def run(llm: LLM, mode: Mode, together: bool) -> tuple[list[RequestOutput], Hashes]:
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    params = [mode.params(i, max_tokens=12) for i in range(len(PROMPTS))]
    with logits_hashes() as hashes:
        if together:
            return llm.generate(prompts, params, use_tqdm=False), hashes
        outputs = [llm.generate(p, own, use_tqdm=False)[0] for p, own in zip(prompts, params, strict=True)]
    return outputs, hashes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_schedule_gives_the_same_logits(precision: str) -> None:
    options = BASE | PRECISIONS[precision]
    with LLM(**options, enable_prefix_caching=False, max_num_batched_tokens=4096) as llm:
        alone = {mode.name: run(llm, mode, together=False) for mode in (GREEDY, SEEDED)}
    assert len(alone["greedy"][1]) >= len(PROMPTS) * 8
    for schedule in SCHEDULES.values():
        with LLM(**(options | schedule)) as llm:
            for mode in (GREEDY, SEEDED):
                outputs, hashes = run(llm, mode, together=True)
                assert_same(alone[mode.name][0], outputs)
                assert hashes == alone[mode.name][1]
