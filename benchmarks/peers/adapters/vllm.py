"""vLLM on the CPU: the offline engine in this process, stepped."""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks.peers.adapters import KV_CACHE_BYTES, MAX_MODEL_LEN
from benchmarks.peers.figures import Figures, StepClock
from benchmarks.peers.workloads import Workload


class VLLM:
    """Its quantized formats need calibrated checkpoints, so it runs in the two plain types only."""

    title = "vLLM (CPU)"
    formats = {"float32": "dtype=float32", "bfloat16": "dtype=bfloat16"}

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return {
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_BYTES >> 30),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }

    def version(self) -> str:
        import vllm

        return vllm.__version__

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        return checkpoint

    def load(self, model: Path, precision: str, threads: int) -> None:
        from vllm import LLM

        llm = LLM(
            str(model),
            dtype=precision,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine = llm.llm_engine
        self._request_ids = itertools.count()

    def run(self, workload: Workload) -> Figures:
        from vllm import SamplingParams

        counts: dict[str, int] = {}
        clock = StepClock(workload)
        for prompt, num_tokens in workload.requests:
            params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
            request_id = str(next(self._request_ids))
            counts[request_id] = 0
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                counts[output.request_id.partition("-")[0]] = len(output.outputs[0].token_ids)
            clock.tick(list(counts.values()))
        return clock.figures()
