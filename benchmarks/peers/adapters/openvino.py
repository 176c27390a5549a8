"""OpenVINO GenAI: its continuous-batching pipeline, stepped; models are exported by optimum-intel."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import KV_CACHE_BYTES
from benchmarks.peers.figures import Figures, StepClock
from benchmarks.peers.model_files import make_once
from benchmarks.peers.workloads import Workload

_EXPORT_FLAGS = {
    "float32": ["--weight-format", "fp32"],
    "bfloat16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"],
}
_PROPERTIES = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"},
}
"""Without a hint a processor with bfloat16 arithmetic uses it for float32 models too."""


class OpenVINO:
    """int8 and int4 run with the engine's own choice of activations and KV cache."""

    title = "OpenVINO GenAI"
    formats = {
        "float32": "fp32, KV cache f32",
        "bfloat16": "bf16, KV cache bf16",
        "int8": "int8 weights per channel, KV cache and activations by default",
        "int4": "int4 symmetric in groups of 128, embedding and head int8",
    }

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return {}

    def version(self) -> str:
        import openvino_genai

        return openvino_genai.get_version()

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        def export(partial: Path) -> None:
            optimum = Path(sys.executable).parent / "optimum-cli"
            task = ["--task", "text-generation-with-past"]
            command = [
                optimum,
                "export",
                "openvino",
                "-m",
                checkpoint,
                *task,
                *_EXPORT_FLAGS[precision],
                partial,
            ]
            subprocess.run([str(word) for word in command], check=True)

        return make_once(folder / f"{checkpoint.name}-{precision}", export)

    def load(self, model: Path, precision: str, threads: int) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = KV_CACHE_BYTES >> 30
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads, **_PROPERTIES.get(precision, {})}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
        self._request_ids = itertools.count()

    def run(self, workload: Workload) -> Figures:
        counts = [0] * len(workload.requests)
        clock = StepClock(workload)
        handles = [
            self._pipeline.add_request(next(self._request_ids), _tensor(prompt), _greedy(num_tokens))
            for prompt, num_tokens in workload.requests
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    counts[index] += sum(len(output.generated_ids) for output in handle.read().values())
            clock.tick(counts)
        return clock.figures()


def _tensor(prompt: list[int]) -> Any:
    import numpy
    import openvino

    return openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))


def _greedy(num_tokens: int) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = num_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    return config
