"""Hugging Face transformers: `generate` over one left-padded static batch, as long as its longest member; or one request
after the other, as most scripts do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import pinned_openmp
from benchmarks.peers.figures import Figures, StepClock
from benchmarks.peers.workloads import Request, Workload

_PAD = 2


class Transformers:
    """In W3 only the tokens that were asked for count."""

    title = "transformers"
    formats = {"float32": "torch.float32", "bfloat16": "torch.bfloat16"}

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return pinned_openmp(threads)

    def version(self) -> str:
        import torch
        import transformers

        return f"{transformers.__version__}, torch {torch.__version__}"

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        return checkpoint

    def load(self, model: Path, precision: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, precision)).eval()

    def run(self, workload: Workload) -> Figures:
        steps = _StepCounter(workload)
        self._generate(workload.requests, steps)
        return steps.figures()

    def _generate(self, requests: Sequence[Request], steps: _StepCounter) -> None:
        """All of them as one batch."""
        import torch

        width, num_steps = max(len(prompt) for prompt, _ in requests), max(count for _, count in requests)
        ids = torch.tensor([[_PAD] * (width - len(prompt)) + prompt for prompt, _ in requests])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in requests])
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=num_steps,
                max_new_tokens=num_steps,
                pad_token_id=_PAD,
                logits_processor=[steps.observe],
            )


class TransformersOneByOne(Transformers):
    """A batch of one for each request of W3; the other workloads are one request, or ask for a full batch."""

    title = "transformers, one by one"

    def run(self, workload: Workload) -> Figures:
        if workload.kind != "W3":
            return super().run(workload)
        steps = _StepCounter(workload)
        for index, request in enumerate(workload.requests):
            steps.begin_at(index)
            self._generate([request], steps)
        return steps.figures()


class _StepCounter:
    """A logits processor that notes the time of each step; streamers take no batches."""

    def __init__(self, workload: Workload) -> None:
        self._counts = [0] * len(workload.requests)
        self._targets = [num_tokens for _, num_tokens in workload.requests]
        self._clock = StepClock(workload)
        self._first = 0

    def begin_at(self, first: int) -> None:
        """The rows of the next batch are the requests from `first` on."""
        self._first = first

    def observe(self, input_ids: Any, scores: Any) -> Any:
        for index in range(self._first, self._first + len(scores)):
            self._counts[index] = min(self._counts[index] + 1, self._targets[index])
        self._clock.tick(self._counts)
        return scores

    def figures(self) -> Figures:
        return self._clock.figures()
