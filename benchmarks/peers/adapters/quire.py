"""Quire: the offline engine, stepped. Further engine arguments may be given as JSON in the variable ENGINE_ARGS."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.peers.adapters import KV_CACHE_BYTES, MAX_MODEL_LEN
from benchmarks.peers.figures import Figures, StepClock
from benchmarks.peers.workloads import Workload

_OPTIONS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}


class Quire:
    """Reads the checkpoint itself; int8 and int4 are quantized while loading."""

    title = "Quire"
    formats = {name: ", ".join(f"{k}={v}" for k, v in options.items()) for name, options in _OPTIONS.items()}

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(threads)}

    def version(self) -> str:
        import quire

        return quire.__version__

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        return checkpoint

    def load(self, model: Path, precision: str, threads: int) -> None:
        from quire import LLM

        options = dict(
            skip_tokenizer_init=True,
            num_threads=threads,
            enable_prefix_caching=False,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=64,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
        )
        options |= _OPTIONS[precision] | json.loads(os.environ.get("ENGINE_ARGS", "{}"))
        self._engine = LLM(model=str(model), **options).llm_engine

    def run(self, workload: Workload) -> Figures:
        from quire import SamplingParams

        counts = [0] * len(workload.requests)
        clock = StepClock(workload)
        for index, (prompt, num_tokens) in enumerate(workload.requests):
            params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
            self._engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                counts[int(output.request_id)] = len(output.outputs[0].token_ids)
            clock.tick(counts)
        return clock.figures()
