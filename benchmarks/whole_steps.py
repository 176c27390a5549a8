"""Whole steps of the engine as fractions of the machine: decode beside the memory's bandwidth, prompts beside the arithmetic.

    python -m benchmarks.whole_steps [--shape S] [--precisions bfloat16 int8 int4] [--rounds 3]

Random weights, greedy, prompts of 128 tokens for decode. The peak of arithmetic is measured before and after each round, in the
same process; of a round the better of the two counts. The read bandwidth is that of the weights' own pages, and is measured
every few steps of decode, for on a virtual machine it differs from page to page and from second to second; of the rates before
and after such a run of steps the better counts; that of a buffer beside them is shown for comparison. A step of decode moves all
weights (an embedding only where it is the output head too) and the keys and values of its context; the operations of a prompt
are those of the linear layers and of causal attention, and of the output head for one token. A figure is the median of its
rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, make_checkpoint
from quire.config.engine_args import EngineArgs
from quire.engine.engine import LLMEngine
from quire.layers.embedding import VocabEmbedding
from quire.ops.cpu.roofline import Probe, Roofline, read_rate
from quire.ops.weights import PackedWeight
from quire.sampling_params import SamplingParams

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "int8-per-token": {"quantization": "int8", "quantization_activation_group": 0},
    "int4": {"quantization": "int4", "quantization_group_size": 32},
    "int4-128": {"quantization": "int4", "quantization_group_size": 128},
}
DECODE_PROMPT, DECODE_STEPS, MAX_MODEL_LEN = 128, 33, 2048
NUM_RUNS, RUN_STEPS = 6, 8  # of decode between measurements of the bandwidth
_MAX_BATCH = 32


@dataclass(frozen=True)
class Costs:
    """What a step must do at least."""

    weight_bytes: int
    kv_bytes_per_token: int
    operations_per_token: float
    """Of the linear layers between embedding and head."""
    head_operations: float
    attention_operations_per_pair: float
    """Per query and key, over all layers and heads."""

    def decode_bytes(self, context: float) -> float:
        """Of one request's step after so many tokens."""
        return self.weight_bytes + self.kv_bytes_per_token * context

    def prompt_operations(self, num_tokens: int) -> float:
        """Of one prompt, whose last token alone passes the output head."""
        pairs = num_tokens * (num_tokens + 1) / 2
        return (
            num_tokens * self.operations_per_token
            + self.head_operations
            + pairs * self.attention_operations_per_pair
        )


def streamed_weights(engine: LLMEngine) -> list[PackedWeight]:
    """Those that a step of decode reads whole."""
    model = engine.core.executor._running().model
    packed = [layer for layer in model.modules() if isinstance(getattr(layer, "weight", None), PackedWeight)]
    is_tied = engine.config.model.hf.tie_word_embeddings
    return [layer.weight for layer in packed if is_tied or not isinstance(layer, VocabEmbedding)]


def costs_of(engine: LLMEngine) -> Costs:
    """Counted on the loaded model."""
    kv, config = engine.core.executor._running().kv, engine.config.model.hf
    weights = streamed_weights(engine)
    head = config.vocab_size * config.hidden_size
    sizes = sum(weight.output_size * weight.input_size for weight in weights)
    return Costs(
        weight_bytes=sum(weight.num_bytes for weight in weights),
        kv_bytes_per_token=kv.bytes_per_block // kv.block_size,
        operations_per_token=2.0 * (sizes - head),
        head_operations=2.0 * head,
        attention_operations_per_pair=4.0
        * config.num_hidden_layers
        * config.num_attention_heads
        * config.head_dim,
    )


def add_requests(engine: LLMEngine, num_requests: int, prompt_len: int, num_tokens: int) -> None:
    """So many equal ones."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    draw = random.Random(0)
    for index in range(num_requests):
        prompt = [draw.randrange(300, 1000) for _ in range(prompt_len)]
        engine.add_request(f"{time.monotonic_ns()}-{index}", {"prompt_token_ids": prompt}, params)


def timed_step(engine: LLMEngine) -> float:
    """Its seconds."""
    start = time.perf_counter()
    engine.step()
    return time.perf_counter() - start


def run(engine: LLMEngine, num_requests: int, prompt_len: int, num_tokens: int) -> list[float]:
    """Seconds of every step of so many equal requests."""
    add_requests(engine, num_requests, prompt_len, num_tokens)
    seconds = []
    while engine.has_unfinished_requests():
        seconds.append(timed_step(engine))
    return seconds


def measure_reading(engine: LLMEngine, costs: Costs, threads: int) -> dict[str, float]:
    """What one request's decode reads a second, and that as a share of the bandwidth: medians over runs of steps."""
    tensors = [tensor for weight in streamed_weights(engine) for tensor in weight.tensors.values()]
    add_requests(engine, 1, DECODE_PROMPT, 1 + NUM_RUNS * RUN_STEPS)
    engine.step()
    rates, reached, shares = [read_rate(tensors, threads, num_runs=3)], [], []
    for index in range(NUM_RUNS):
        step = statistics.median(timed_step(engine) for _ in range(RUN_STEPS))
        moved = costs.decode_bytes(DECODE_PROMPT + (index + 0.5) * RUN_STEPS)
        rates.append(read_rate(tensors, threads, num_runs=3))
        reached.append(moved / step)
        shares.append(moved / step / max(rates[-2:]))
    while engine.has_unfinished_requests():
        engine.step()
    return {
        "GB/s": statistics.median(reached) / 1e9,
        "of read bandwidth": statistics.median(shares),
        "weights read, GB/s": statistics.median(rates) / 1e9,
    }


def measure_round(engine: LLMEngine, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a decode step for each batch size, and of reading a prompt."""
    found = {}
    for batch_size in args.batch_sizes:
        steps = run(engine, batch_size, DECODE_PROMPT, DECODE_STEPS)
        found[f"decode {batch_size}"] = statistics.median(steps[-DECODE_STEPS + 2 :])
    found["prompt"] = min(sum(run(engine, 1, args.prompt_len, 1)) for _ in range(2))
    return found


def measure(precision: str, args: argparse.Namespace, probe: Probe) -> dict[str, Any]:
    """All figures of one precision."""
    engine = LLMEngine.from_engine_args(
        EngineArgs.from_kwargs(
            model=str(make_checkpoint(args.shape, args.models, "bfloat16")),
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=_MAX_BATCH,
            max_num_batched_tokens=MAX_MODEL_LEN,
            enable_prefix_caching=False,
            kv_cache_memory_bytes=1 << 30,
            num_threads=args.threads,
            **PRECISIONS[precision],
        ),
        offline=True,
    )
    try:
        costs = costs_of(engine)
        run(engine, 1, 16, 4)
        rounds = []
        for _ in range(args.rounds):
            before = probe.measure(args.threads)
            seconds = measure_round(engine, args)
            found = _fractions(seconds, costs, [before, probe.measure(args.threads)], precision, args)
            rounds.append(found | measure_reading(engine, costs, args.threads))
    finally:
        engine.shutdown()
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def _fractions(
    seconds: dict[str, float], costs: Costs, rooflines: list[Roofline], precision: str, args: argparse.Namespace
) -> dict[str, float]:
    kind = "int8" if precision.startswith("int") else precision
    peak = max(getattr(roofline, kind) or roofline.float32 for roofline in rooflines)
    found = {}
    for batch_size in args.batch_sizes:
        step = seconds[f"decode {batch_size}"]
        found[f"batch {batch_size}, tok/s"] = batch_size / step
        if batch_size == 1:
            found["step, ms"] = 1e3 * step
        elif 1 in args.batch_sizes:
            found[f"batch {batch_size} / batch 1"] = batch_size * seconds["decode 1"] / step
    prompt = seconds["prompt"]
    found[f"prompt of {args.prompt_len}, tok/s"] = args.prompt_len / prompt
    found[f"of the {kind} peak"] = costs.prompt_operations(args.prompt_len) / prompt / peak
    buffer = max(roofline.read for roofline in rooflines)
    return found | {"peak, GOP/s": peak / 1e9, "a buffer read, GB/s": buffer / 1e9}


def main() -> None:
    """Measure and print a list per precision, then JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 8, 32], metavar="N", help=f"at most {_MAX_BATCH}"
    )
    parser.add_argument("--prompt-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--models", type=Path, help="folder of the checkpoints; default: under the temporary folder"
    )
    args = parser.parse_args()
    probe = Probe(args.threads)
    results = {}
    for precision in args.precisions:
        results[precision] = measure(precision, args, probe)
        print(f"{args.shape}, {precision}")
        for name, value in results[precision].items():
            share = name.startswith("of ")
            print(f"  {name:<26}{f'{value:.1%}' if share else f'{value:.4g}':>10}", flush=True)
    arguments = vars(args) | {"models": args.models and str(args.models)}
    print(json.dumps({"benchmark": "whole_steps", **arguments, "figures": results}))


if __name__ == "__main__":
    main()
