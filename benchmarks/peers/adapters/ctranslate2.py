"""CTranslate2: one static batch, whose members a callback stops at their own length."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import pinned_openmp
from benchmarks.peers.figures import Figures, StepClock
from benchmarks.peers.model_files import make_once
from benchmarks.peers.workloads import Workload

_QUANTIZATION = {"float32": "float32", "int8": "int8"}


class CTranslate2:
    """On the CPU it has neither bfloat16 nor 4 bits."""

    title = "CTranslate2"
    formats = {"float32": "float32", "int8": "int8 weights per row, compute type int8_float32"}

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return pinned_openmp(threads)

    def version(self) -> str:
        import ctranslate2

        return ctranslate2.__version__

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        def convert(partial: Path) -> None:
            converter = str(Path(sys.executable).parent / "ct2-transformers-converter")
            paths = ["--model", str(checkpoint), "--output_dir", str(partial)]
            subprocess.run([converter, *paths, "--quantization", _QUANTIZATION[precision]], check=True)

        return make_once(folder / f"{checkpoint.name}-{precision}", convert)

    def load(self, model: Path, precision: str, threads: int) -> None:
        import ctranslate2

        self._tokens = json.loads((model / "vocabulary.json").read_text())
        self._generator = ctranslate2.Generator(
            str(model), device="cpu", intra_threads=threads, inter_threads=1, compute_type="default"
        )

    def run(self, workload: Workload) -> Figures:
        prompts = [[self._tokens[token_id] for token_id in prompt] for prompt, _ in workload.requests]
        targets = [num_tokens for _, num_tokens in workload.requests]
        steps = _StepCounter(workload)
        self._generator.generate_batch(
            prompts,
            max_length=max(targets),
            min_length=max(targets),
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
            callback=steps.observe,
            max_batch_size=0,
        )
        return steps.finish()


class _StepCounter:
    """Turns one callback per token into one tick per step."""

    def __init__(self, workload: Workload) -> None:
        self._targets = [num_tokens for _, num_tokens in workload.requests]
        self._counts = [0] * len(self._targets)
        self._step = 0
        self._clock = StepClock(workload)
        self._last = time.perf_counter()

    def observe(self, result: Any) -> bool:
        """Count a token; True stops its sequence."""
        if result.step != self._step:
            self._clock.tick(self._counts, at=self._last)
            self._step = result.step
        self._last = time.perf_counter()
        self._counts[result.batch_id] += 1
        return self._counts[result.batch_id] >= self._targets[result.batch_id]

    def finish(self) -> Figures:
        self._clock.tick(self._counts)
        return self._clock.figures()
