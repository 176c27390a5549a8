"""`quire bench throughput | latency | serve`."""

from __future__ import annotations

from typing import Any

from quire.bench import offline, online


def add_parser(subparsers: Any) -> None:
    """Add `bench` and its three kinds to the commands."""
    parser = subparsers.add_parser(
        "bench",
        help="measure throughput, latency or a running server",
        description="Measure throughput, latency or a running server.",
    )
    kinds = parser.add_subparsers(title="benchmarks", metavar="KIND", dest="kind", required=True)
    for name, add_arguments, run, help_text in (
        (
            "throughput",
            offline.add_throughput_arguments,
            offline.run_throughput,
            "all requests at once, without HTTP",
        ),
        (
            "latency",
            offline.add_latency_arguments,
            offline.run_latency,
            "one batch again and again, without HTTP",
        ),
        ("serve", online.add_arguments, online.run, "load on a running server"),
    ):
        kind = kinds.add_parser(
            name,
            help=help_text,
            usage=f"quire bench {name} [options]",
            description=f"Measure: {help_text}.",
        )
        add_arguments(kind)
        kind.set_defaults(run=run)
