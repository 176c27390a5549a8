"""Measure Quire beside whichever peers are installed, in one interleaved run.

    python -m benchmarks.peers --python openvino=ENV/bin/python --llama-bin DIR --out DIR

Writes DIR/report.md, DIR/report.json, DIR/chart.svg and, while it runs, DIR/measurements.jsonl. Peers that are not
installed are left out and named. How to install them is in this folder's README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.adapters import ADAPTERS
from benchmarks.peers.chart import draw_chart
from benchmarks.peers.compare import Plan, compare
from benchmarks.peers.machine import describe_machine
from benchmarks.peers.options import parse_args
from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.report import render_report
from benchmarks.peers.results import (
    Measurement,
    append_measurement,
    as_json,
    make_rows,
    read_measurements,
)
from benchmarks.shapes import make_checkpoint


def make_peers(args: argparse.Namespace) -> list[Peer]:
    """A peer for each name, with its interpreter and variables."""
    pythons = dict(word.split("=", 1) for word in args.python)
    variables: dict[str, dict[str, str]] = {}
    for word in args.env:
        peer, _, setting = word.partition(":")
        name, _, value = setting.partition("=")
        variables.setdefault(peer, {})[name] = value
    if args.llama_bin:
        path = f"{args.llama_bin.resolve()}{os.pathsep}{os.environ['PATH']}"
        variables.setdefault("llamacpp", {})["PATH"] = path
    for name in [*pythons, *variables]:
        if name not in ADAPTERS:
            raise SystemExit(f"unknown peer {name}; peers are {', '.join(ADAPTERS)}")
    return [
        Peer(
            name,
            ADAPTERS[name],
            os.path.abspath(pythons.get(name, sys.executable)),
            args.threads,
            args.out / f"{name}.log",
            variables.get(name, {}),
        )
        for name in args.peers
    ]


def find_installed(peers: list[Peer]) -> tuple[dict[str, str], dict[str, str]]:
    """Version of each peer that answers, and why the others do not."""
    versions, left_out = {}, {}
    for peer in peers:
        try:
            versions[peer.name] = peer.version()
        except PeerError as error:
            left_out[peer.name] = f"not installed: {error}"
        finally:
            peer.close()
    return versions, left_out


def prepare_models(
    peers: list[Peer], shape: str, precision: str, folder: Path
) -> dict[str, Path | PeerError]:
    """Each peer's model file, or why there is none."""
    checkpoint = make_checkpoint(shape, folder.resolve(), "bfloat16")
    models: dict[str, Path | PeerError] = {}
    for peer in peers:
        if precision in peer.formats:
            try:
                models[peer.name] = peer.prepare(checkpoint, precision, folder.resolve() / peer.name)
            except PeerError as error:
                models[peer.name] = error
            finally:
                peer.close()
    return models


def run(args: argparse.Namespace, peers: list[Peer], kept: Path) -> None:
    """Measure every shape and precision, and keep each measurement."""
    free_gib = psutil.virtual_memory().available / (1 << 30)
    memory_mib = 1024 * (args.memory_gib or free_gib / 2)
    plan = Plan(args.workloads, args.rounds, args.scale, args.batch_sizes, memory_mib)
    cases = [(shape, precision) for shape in args.shapes for precision in args.precisions]
    models = {case: prepare_models(peers, *case, args.models) for case in cases}
    for case in cases if not args.prepare_only else ():
        contestants = []
        for peer in peers:
            model = models[case].get(peer.name)
            if isinstance(model, PeerError):
                _keep(kept, Measurement(*case, "files", 0, peer.name, error=str(model)))
            elif model is not None:
                contestants.append((peer, model))
        for measurement in compare(plan, *case, contestants):
            _keep(kept, measurement)


def _keep(kept: Path, measurement: Measurement) -> None:
    append_measurement(kept, measurement)
    shown = measurement.error or ", ".join(
        f"{name} {value:.1f}" for name, value in measurement.figures.items()
    )
    what = f"{measurement.shape} {measurement.precision} {measurement.workload} #{measurement.round + 1}"
    print(f"{what} {measurement.peer}: {shown} (others {measurement.neighbours:.0%})", flush=True)


def write_results(folder: Path, about: dict[str, Any], measurements: list[Measurement]) -> None:
    """Table, JSON and chart."""
    (folder / "report.md").write_text(render_report(about, measurements))
    (folder / "report.json").write_text(json.dumps(as_json(about, measurements), indent=2) + "\n")
    titles = {name: peer["title"] for name, peer in about["peers"].items()}
    try:
        draw_chart(make_rows(measurements), titles, folder / "chart.svg")
    except ImportError as error:
        print(f"no chart: {error}", file=sys.stderr)


def describe_run(args: argparse.Namespace, peers: list[Peer]) -> dict[str, Any]:
    """Machine, options and peers, those of the run that is added to included."""
    versions, left_out = find_installed(peers)
    earlier = args.out / "report.json"
    known = json.loads(earlier.read_text())["peers"] if earlier.exists() else {}
    installed = {
        peer.name: {"title": peer.title, "version": versions[peer.name], "formats": peer.formats}
        for peer in peers
        if peer.name in versions
    }
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "threads": args.threads,
        "scale": args.scale,
        "command": sys.argv[1:],
        "peers": known | installed,
        "left_out": left_out,
    }


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "measurements.jsonl"
    if kept.exists() and not args.append:
        raise SystemExit(f"{kept} exists; name another folder with --out, or add to it with --append")
    peers = make_peers(args)
    about = describe_run(args, peers)
    for name, why in about["left_out"].items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    try:
        run(args, [peer for peer in peers if peer.name not in about["left_out"]], kept)
    finally:
        measurements = read_measurements(kept)
        if measurements:
            write_results(args.out, about, measurements)
    if measurements:
        print((args.out / "report.md").read_text())


if __name__ == "__main__":
    main()
