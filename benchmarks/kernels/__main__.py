"""Each kernel as a fraction of the roofline that is measured in the same run: `python -m benchmarks.kernels --help`.

Times are the best of several runs, since other work on the machine can only add to them; the roofline is the best of runs
before, between and after. Weights and caches are cycled over copies that exceed the last-level cache. The full set takes most
of an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import attention, elementwise, linear, long_context, sampler
from benchmarks.kernels.measure import Case, measure
from benchmarks.kernels.models import MODELS
from quire import envs, platform
from quire.ops import cpu

KERNELS = ("linear", "attention", "elementwise", "sampler", "long_context")
MATRICES = ("qkv", "o", "gate_up", "down", "lm_head")

_SECONDS_BETWEEN_PEAKS = 10.0


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
    peaks = _Peaks(Probe(args.threads), args.threads)
    rows = []
    for case in _cases(args):
        rows.append(_noted(measure(case, args.seconds)))
        peaks.update(every=_SECONDS_BETWEEN_PEAKS)
    contexts = list(_long_contexts(args))
    roofline = peaks.update()
    report = {
        "level": cpu.level(),
        "cpu": platform.cpu_model(),
        "roofline": dataclasses.asdict(roofline),
        "rows": [row.compare(roofline) for row in rows],
        "long_context": contexts,
    }
    print(render(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


class _Peaks:
    """The best roofline so far: on a machine that others use too, one look at it may catch them at work."""

    def __init__(self, probe: Any, threads: int) -> None:
        self._probe, self._threads = probe, threads
        self._best = probe.measure(threads, choose=max)
        self._last = time.perf_counter()

    def update(self, every: float = 0.0) -> Any:
        """Measure again if `every` seconds have passed; returns the best."""
        if time.perf_counter() - self._last >= every:
            self._best = _best(self._best, self._probe.measure(self._threads, num_runs=3, choose=max))
            self._last = time.perf_counter()
        return self._best


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def choose(option: str, values: Any, default: Any, help: str) -> None:
        parser.add_argument(option, nargs="+", choices=values, default=default, help=help, metavar="NAME")

    choose("--kernels", KERNELS, KERNELS, f"of {', '.join(KERNELS)}")
    choose("--shapes", list(MODELS), ["S", "M", "8B"], f"of {', '.join(MODELS)}; default S M 8B")
    choose("--matrices", MATRICES, MATRICES, f"linear layers, of {', '.join(MATRICES)}")
    choose("--formats", list(linear.FORMATS), list(linear.FORMATS), f"of weights: {', '.join(linear.FORMATS)}")
    choose("--kv-dtypes", list(attention.KV_DTYPES), list(attention.KV_DTYPES), f"of {', '.join(attention.KV_DTYPES)}")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 512, 1024], metavar="M", help="tokens of a step")
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 1024, 4096, 32768], metavar="N", help="tokens")
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring per case (%(default)s)")
    parser.add_argument("--threads", type=int, default=envs.NUM_THREADS.read() or platform.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    return parser.parse_args(arguments)


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    for model in args.shapes:
        dimensions = MODELS[model]
        if "linear" in args.kernels:
            yield from linear.cases(model, dimensions, args.formats, args.rows, args.matrices)
        if "attention" in args.kernels:
            yield from attention.cases(model, dimensions, args.contexts, args.kv_dtypes, args.rows)
        if "elementwise" in args.kernels:
            yield from elementwise.cases(model, dimensions, args.rows)
        if "sampler" in args.kernels:
            yield from sampler.cases(model, dimensions, args.rows)


def _long_contexts(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if "long_context" not in args.kernels:
        return
    format = "int8/128" if "int8/128" in args.formats else args.formats[0]
    for model in args.shapes:
        for dtype in args.kv_dtypes:
            yield long_context.compare(model, MODELS[model], max(args.contexts), format, dtype, args.seconds)


def _noted(row: Any) -> Any:
    print(f"{row.kernel} {row.model} {row.detail}: {row.seconds * 1e6:.1f} us", file=sys.stderr, flush=True)
    return row


def _best(a: Any, b: Any) -> Any:
    """The larger of each figure of two rooflines."""
    fields = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)}
    return type(a)(**{name: None if pair[0] is None else max(pair) for name, pair in fields.items()})


def render(report: dict[str, Any]) -> str:
    """The report as tables in Markdown."""
    peaks = report["roofline"]
    bfloat16 = f", bfloat16 {peaks['bfloat16'] / 1e9:.0f} GFLOP/s" if peaks["bfloat16"] else ""
    lines = [
        f"{report['cpu']}, level {report['level']}, {peaks['threads']} threads: memory {peaks['read'] / 1e9:.1f} GB/s, "
        f"cache {peaks['cache_read'] / 1e9:.1f} GB/s, float32 {peaks['float32'] / 1e9:.0f} GFLOP/s, "
        f"int8 {peaks['int8'] / 1e9:.0f} GOP/s{bfloat16}",
        "",
        "| kernel | model | case | run as | MB | MOP | us | roof | fraction |",
        "|---|---|---|---|--:|--:|--:|---|--:|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['kernel']} | {row['model']} | {row['detail']} | {row['how']} | {row['bytes'] / 1e6:.2f} "
            f"| {row['operations'] / 1e6:.1f} | {row['seconds'] * 1e6:.1f} | {row['roof']} | {row['fraction']:.1%} |"
        )
    for row in report["long_context"]:
        lines += [
            "",
            f"{row['model']}, {row['format']}, KV {row['kv_dtype']}: a prompt of {row['context']:,} tokens is read at "
            f"{row['whole_prompt']:.1%} of the rate of one of {long_context.SHORT:,}; its last chunk at {row['last_chunk']:.1%}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
