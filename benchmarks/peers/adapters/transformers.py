"""Hugging Face transformers: `generate` over one left-padded static batch, as long as its longest member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import pinned_openmp
from benchmarks.peers.figures import Figures, StepClock
from benchmarks.peers.workloads import Workload

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
        import torch

        targets = [num_tokens for _, num_tokens in workload.requests]
        width, num_steps = max(len(prompt) for prompt, _ in workload.requests), max(targets)
        ids = torch.tensor([[_PAD] * (width - len(prompt)) + prompt for prompt, _ in workload.requests])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in workload.requests])
        steps = _StepCounter(workload, targets)
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
        return steps.figures()


class _StepCounter:
    """A logits processor that notes the time of each step; streamers take no batches."""

    def __init__(self, workload: Workload, targets: list[int]) -> None:
        self._targets, self._num_steps = targets, 0
        self._clock = StepClock(workload)

    def observe(self, input_ids: Any, scores: Any) -> Any:
        self._num_steps += 1
        self._clock.tick([min(self._num_steps, target) for target in self._targets])
        return scores

    def figures(self) -> Figures:
        return self._clock.figures()
