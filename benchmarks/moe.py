"""A mixture of experts beside what the machine can do: few tokens beside the memory's bandwidth, many beside dense layers.

    python -m benchmarks.moe [--shapes mixtral qwen3-30b] [--formats bfloat16 int8/64 int4-32/64] [--tokens 1 8 512]

One block (router, choice, experts, weighted sum) with random weights runs as a program, as in a captured model. What it must read
are the experts that the tokens go to. `dense` is one gated feed-forward block of an expert's shape over as many rows as there are
pairs of a token and an expert: the same operations, with one block's weights, which stay in the caches where there are few rows.
Times are the best of several runs; the roofline is measured in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.measure import (
    Case,
    Work,
    make_inputs,
    make_step,
    measure,
    nothing,
    num_copies,
    with_forward,
)
from quire import envs, ops, platform
from quire.ops import cpu
from quire.ops.capture import StepTensors
from quire.ops.routing import Routing
from quire.ops.weights import PackedWeight, WeightFormat, stacked_rows

FORMATS = {
    "float32": WeightFormat("float32"),
    "bfloat16": WeightFormat("bfloat16"),
    "int8/64": WeightFormat("int8", 0, 64),
    "int4-32/64": WeightFormat("int4", 32, 64),
    "int4-128/64": WeightFormat("int4", 128, 64),
}
"""int8/A and int4-G/A: weight scales per G inputs, activation scales per A."""
_CPU = torch.device("cpu")
_MAX_COPIES = 16


@dataclass(frozen=True)
class Shape:
    """One layer's mixture."""

    num_experts: int
    top_k: int
    hidden: int
    inner: int


SHAPES = {
    "mixtral": Shape(8, 2, 4096, 14336),
    "qwen3-30b": Shape(128, 8, 2048, 768),
    "T": Shape(5, 2, 64, 96),
}
"""mixtral: Mixtral-8x7B, qwen3-30b: Qwen3-30B-A3B, T: a smoke test."""


@dataclass(frozen=True)
class Block:
    """Weights of one layer."""

    router: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight


def main(arguments: list[str] | None = None) -> None:
    """Measure, then print the table and write the JSON file."""
    args = _parse(arguments)
    if not cpu.status().built:
        sys.exit(f"the roofline needs the C++ kernels: {cpu.status().reason}")
    from quire.ops.cpu.extension import extension
    from quire.ops.cpu.roofline import Probe

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    extension.set_num_threads(args.threads)
    probe = Probe(args.threads)
    before = probe.measure(args.threads, choose=max)
    measured = [_measured(*case, args.seconds) for case in _cases(args)]
    after = probe.measure(args.threads, choose=max)
    roofline = before if before.read > after.read else after
    rows = [_row(name, moe.compare(roofline), dense) for name, moe, dense in measured]
    report = {
        "level": cpu.level(),
        "cpu": platform.cpu_model(),
        "roofline": dataclasses.asdict(roofline),
        "rows": rows,
    }
    print(render(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.moe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=["mixtral", "qwen3-30b"], metavar="NAME"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["bfloat16", "int8/64", "int4-32/64"], metavar="NAME"
    )
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=[1, 8, 512], metavar="T", help="of a step (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring per case (%(default)s)")
    parser.add_argument("--threads", type=int, default=envs.NUM_THREADS.read() or platform.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    return parser.parse_args(arguments)


# -- cases ---------------------------------------------------------------------------------------------------


def _cases(args: argparse.Namespace) -> Iterator[tuple[str, Case, Case]]:
    """Name, the mixture and the dense block for each shape, format and number of tokens."""
    for shape_name in args.shapes:
        shape = SHAPES[shape_name]
        embedding = make_inputs(shape.hidden)
        for format_name in args.formats:
            format = FORMATS[format_name]
            chosen = int(_bytes_of_experts(shape, format, shape.top_k))
            blocks = [make_block(shape, format) for _ in range(num_copies(chosen, _MAX_COPIES))]
            for num_tokens in args.tokens:
                name = f"{shape_name} {format_name} T={num_tokens}"
                used = blocks if num_tokens == 1 else blocks[:1]
                moe = _moe(name, shape, used, embedding, num_tokens)
                yield name, moe, _dense(name, shape, format, embedding, num_tokens)


def make_block(shape: Shape, format: WeightFormat) -> Block:
    """Random weights, packed expert by expert, so that no more than one expert's are ever held as floats."""
    inner, hidden = stacked_rows(shape.inner), stacked_rows(shape.hidden)
    gate_up = ops.new_weight(format, 2 * shape.num_experts * inner, shape.hidden, True, _CPU)
    down = ops.new_weight(format, shape.num_experts * hidden, shape.inner, False, _CPU)
    for expert in range(shape.num_experts):
        for half in (0, 1):
            rows = torch.rand(shape.inner, shape.hidden).sub_(0.5)
            ops.set_rows(gate_up, (half * shape.num_experts + expert) * inner, rows)
        ops.set_rows(down, expert * hidden, torch.rand(shape.hidden, shape.inner).sub_(0.5))
    router = ops.pack_weight(torch.randn(shape.num_experts, shape.hidden), WeightFormat("float32"))
    return Block(router, gate_up, down)


def _bytes_of_experts(shape: Shape, format: WeightFormat, count: int) -> float:
    bits = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4 + 16 / (format.group_size or 1)}[format.name]
    return count * 3 * shape.hidden * shape.inner * bits / 8


def _moe(name: str, shape: Shape, blocks: list[Block], embedding: PackedWeight, num_tokens: int) -> Case:
    routing, step = Routing(shape.num_experts, shape.top_k, renormalized=True), make_step(num_tokens)

    def route(x: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        return ops.route(ops.linear(x, block.router), routing)

    def forward(step: StepTensors) -> Tensor:
        x = ops.embedding(step.token_ids, embedding)
        for block in blocks:
            out = ops.experts(x, *route(x, block), block.gate_up, block.down)
        return out

    x = ops.embedding(step.token_ids, embedding)
    in_use = sum(len(route(x, block)[0].unique()) for block in blocks) / len(blocks)
    format = blocks[0].gate_up.format
    work = _work(shape, format, num_tokens, _bytes_of_experts(shape, format, 1) * in_use)
    return with_forward(Case("moe", name, f"{in_use:.1f} experts", work, len(blocks), nothing), forward, step)


def _dense(name: str, shape: Shape, format: WeightFormat, embedding: PackedWeight, num_tokens: int) -> Case:
    gate_up = ops.pack_weight(torch.rand(2 * shape.inner, shape.hidden).sub_(0.5), format, gate_up=True)
    down = ops.pack_weight(torch.rand(shape.hidden, shape.inner).sub_(0.5), format)

    def forward(step: StepTensors) -> Tensor:
        return ops.linear(ops.gate_up_linear(ops.embedding(step.token_ids, embedding), gate_up), down)

    work = _work(shape, format, num_tokens, _bytes_of_experts(shape, format, 1))
    step = make_step(num_tokens * shape.top_k)
    return with_forward(Case("dense", name, "one block", work, 1, nothing), forward, step)


def _work(shape: Shape, format: WeightFormat, num_tokens: int, num_bytes: float) -> Work:
    operations = 6.0 * num_tokens * shape.top_k * shape.hidden * shape.inner
    return Work(num_bytes, operations, "int8" if format.is_integer else format.name)


# -- the table -----------------------------------------------------------------------------------------------


def _measured(name: str, moe: Case, dense: Case, seconds: float) -> tuple[str, Any, float]:
    mixture, block = measure(moe, seconds), measure(dense, seconds)
    print(
        f"{name}: {mixture.seconds * 1e6:.0f} us, dense {block.seconds * 1e6:.0f} us",
        file=sys.stderr,
        flush=True,
    )
    return name, mixture, block.seconds


def _row(name: str, compared: dict[str, Any], dense: float) -> dict[str, Any]:
    return compared | {"name": name, "dense_seconds": dense, "of_dense": dense / compared["seconds"]}


def render(report: dict[str, Any]) -> str:
    """The report as a table in Markdown."""
    peaks = report["roofline"]
    lines = [
        f"{report['cpu']}, level {report['level']}, {peaks['threads']} threads: memory {peaks['read'] / 1e9:.1f} GB/s, "
        f"int8 {peaks['int8'] / 1e9:.0f} GOP/s",
        "",
        "| block | run as | read | MB | ms | roof | fraction | dense, ms | speed of dense |",
        "|---|---|---|--:|--:|---|--:|--:|--:|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['name']} | {row['how']} | {row['detail']} | {row['bytes'] / 1e6:.1f} | {row['seconds'] * 1e3:.3f} "
            f"| {row['roof']} | {row['fraction']:.1%} | {row['dense_seconds'] * 1e3:.3f} | {row['of_dense']:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
