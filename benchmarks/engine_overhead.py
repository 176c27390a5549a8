"""What the engine costs outside the kernels: time of `LLMEngine.step` with a real model, or with one that returns at once.

Run `python -m benchmarks.engine_overhead`. Every request decodes one token per step. `outside` is the step without programs
and the kernels of the sampler, which are timed within it. Times are milliseconds of the best tenth of all steps, since other
work on the machine only ever adds; `median` is that of `outside` over all steps.

With `--shape` the model has random weights, and a step moves them all through the caches: every page of Python's that the next
one touches comes from memory, which is most of the cost. Without, the model is a stub whose logits lie ready, with a
vocabulary of shape S (151,936) and folio's tokenizer: the least that the same code can take.
Targets: 0.3 ms at batch 1 (3 % of a 10 ms step), 2.2 ms at batch 32 (5 % of 45 ms).
"""

from __future__ import annotations

import argparse
import gc
import importlib.resources
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.shapes import SHAPES, make_checkpoint
from quire import ops
from quire.batch import ScheduledBatch, StepResult
from quire.config.engine_args import EngineArgs
from quire.config.types import CacheConfig, EngineConfig, HFConfig, KVCacheSpec, ModelConfig, SchedulerConfig
from quire.engine.engine import LLMEngine
from quire.engine.engine_core import EngineCore
from quire.ops import cpu
from quire.ops.capture import Step
from quire.runner import model_runner
from quire.runner.kv_cache import KVCache
from quire.sampling_params import RequestOutputKind, SamplingParams

VOCAB_SIZE = 151_936
MAX_MODEL_LEN = 4096
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "random": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
}
KINDS = {
    "final": RequestOutputKind.FINAL_ONLY,
    "delta": RequestOutputKind.DELTA,
    "cumulative": RequestOutputKind.CUMULATIVE,
}
COLUMNS = ("step", "kernels", "outside", "median", "schedule", "execute", "update", "outputs", "rest")
TARGETS_MS = {1: 0.3, 32: 2.2}


class Clock:
    """Sums the seconds spent in methods and functions that it watches."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def watching(self, watched: list[tuple[str, Any, str]]) -> Iterator[None]:
        """Time (name, owner, attribute) triples as `name`; the owners get their own functions back at the end."""
        before = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in watched]
        for (name, _, _), (owner, attribute, function) in zip(watched, before, strict=True):
            setattr(owner, attribute, self._timed(name, function))
        try:
            yield
        finally:
            for owner, attribute, function in before:
                setattr(owner, attribute, function)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        return timed


class StubModel:
    """A `CapturedModel` whose logits were made before; the likeliest tokens are in folio's vocabulary."""

    def __init__(self, max_rows: int) -> None:
        self._logits = torch.randn(max_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
        self._logits[:, 300:400] += 12.0

    def run(self, step: Step) -> None:
        pass

    def greedy_tokens(self, step: Step, chosen: list[int]) -> list[int] | None:
        return None

    def logits(self, step: Step, chosen: list[int]) -> Tensor:
        return self._logits[: len(chosen)]


class StubExecutor:
    """A `ModelRunner` around the stub."""

    def __init__(self, config: EngineConfig) -> None:
        blocks = config.scheduler.max_num_seqs * MAX_MODEL_LEN // config.cache.block_size + 1
        self.kv = KVCacheSpec(blocks, 0, config.cache.block_size, 1)
        cache = KVCache(self.kv, config.model.hf, torch.float32, torch.device("cpu"))
        with mock.patch.object(model_runner, "prepare_model", lambda *_: StubModel(config.scheduler.max_num_seqs)):
            self.runner = model_runner.ModelRunner(nn.Module(), cache, config, torch.device("cpu"))

    def execute(self, batch: ScheduledBatch) -> StepResult:
        return self.runner.execute(batch)

    def call_all(self, method: str, *args: Any) -> list[Any]:
        return []

    def shutdown(self) -> None:
        pass


def make_engine(args: argparse.Namespace, batch_size: int) -> LLMEngine:
    """An engine with room for `batch_size` requests, over a random model or the stub."""
    if args.shape is None:
        return _stub_engine(batch_size, args.prompt_len)
    model = str(make_checkpoint(args.shape, args.models, "bfloat16"))
    limits = {"max_model_len": MAX_MODEL_LEN // 2, "max_num_seqs": batch_size, "disable_log_stats": True}
    return LLMEngine.from_engine_args(
        EngineArgs.from_kwargs(model=model, quantization=args.quantization, **limits), offline=True
    )


def _stub_engine(batch_size: int, prompt_len: int) -> LLMEngine:
    folio = str(importlib.resources.files("quire.builtin") / "folio")
    hf = HFConfig("Stub", "stub", VOCAB_SIZE, 8, 8, 1, 1, 1, 8, MAX_MODEL_LEN)
    config = EngineConfig(
        ModelConfig("stub", folio, folio, hf, "float32", MAX_MODEL_LEN, ("stub",)),
        cache=CacheConfig(),
        scheduler=SchedulerConfig(batch_size * prompt_len, batch_size, MAX_MODEL_LEN),
    )
    return LLMEngine(config, EngineCore(config, StubExecutor(config)))


def measure(args: argparse.Namespace, batch_size: int) -> dict[str, float]:
    """One row of the table: milliseconds per step, and where they go."""
    engine = make_engine(args, batch_size)
    params = SamplingParams(
        max_tokens=None, ignore_eos=True, seed=1, output_kind=KINDS[args.output], **SAMPLING[args.sampling]
    )
    for i in range(batch_size):
        first = 300 + i % 50
        engine.add_request(f"request-{i}", list(range(first, first + args.prompt_len)), params)
    for _ in range(args.num_warmup):
        engine.step()
    gc.collect()
    gc.freeze()  # as an engine process does when it is up
    core, clock = engine.core, Clock()
    extension = cpu.load()[0]
    watched: list[tuple[str, Any, str]] = [] if extension is None else [("kernels", extension.Program, "run")]
    watched += [
        ("kernels", ops, "argmax"),
        ("kernels", ops, "sample"),
        ("kernels", ops, "rank_tokens"),
        ("schedule", core.scheduler, "schedule"),
        ("execute", core.executor, "execute"),
        ("update", core.scheduler, "update"),
        ("outputs", engine._outputs, "process"),
    ]
    with clock.watching(watched):
        steps = [timed_step(engine, clock) for _ in range(args.num_steps)]
    engine.shutdown()
    steps.sort(key=lambda step: step["outside"])
    best = steps[: max(1, len(steps) // 10)]
    row = {name: statistics.fmean(step[name] for step in best) for name in COLUMNS if name != "median"}
    return row | {"median": steps[len(steps) // 2]["outside"]}


def timed_step(engine: LLMEngine, clock: Clock) -> dict[str, float]:
    """Milliseconds of one step. `execute` is the runner without the kernels, `rest` what no other part holds."""
    clock.seconds.clear()
    start = time.perf_counter()
    engine.step()
    step = {name: 1e3 * seconds for name, seconds in clock.seconds.items()}
    step["step"] = 1e3 * (time.perf_counter() - start)
    step["execute"] -= step["kernels"]
    step["outside"] = step["step"] - step["kernels"]
    step["rest"] = step["outside"] - sum(step[name] for name in ("schedule", "execute", "update", "outputs"))
    return step


def main() -> None:
    """Measure and print a table, then JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, help="a model of this shape; default: the stub")
    parser.add_argument("--quantization", choices=("int8", "int4"), help="of the model's weights")
    parser.add_argument("--models", type=Path, help="folder of the checkpoints; default: under the temporary folder")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--sampling", choices=SAMPLING, default="greedy")
    parser.add_argument("--output", choices=KINDS, default="final", help="output_kind of the requests")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--num-warmup", type=int, default=20)
    parser.add_argument("--num-steps", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {batch_size: measure(args, batch_size) for batch_size in args.batch_sizes}
    print(f"{'batch':>6}" + "".join(f"{name:>10}" for name in COLUMNS) + "   (ms)")
    for batch_size, row in rows.items():
        print(f"{batch_size:>6}" + "".join(f"{row[name]:>10.3f}" for name in COLUMNS))
    arguments = vars(args) | {"models": args.models and str(args.models)}
    print(json.dumps({"benchmark": "engine_overhead", **arguments, "targets_ms": TARGETS_MS, "ms": rows}))


if __name__ == "__main__":
    main()
