"""How long a checkpoint takes to load, as ratios within one run: Quire beside transformers, safetensors beside .bin.

    python -m benchmarks.loading [--shape S] [--dtype bfloat16] [--repeat 3] [--to results.json]

Every load is a process of its own that has loaded a small checkpoint before, and its time is that of the load alone: imports, and
the page cache of the files, are warm.
Each round loads with all of them in turn; the times are medians over the rounds. Memory is what the load added at its highest,
beside the size of the weights. transformers loads what it computes with, so does Quire: packed weights. No quantization unless
a row says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, make_checkpoint

_QUIRE = """
import json, resource, sys, time
import torch
from quire.config.hf import load_hf_config
from quire.config.types import LoadConfig, ModelConfig
from quire.loader import load_model
from quire.loader.load import weight_bytes
from quire import ops, platform

ops.set_num_threads(platform.cpu_count())
small, folder, dtype, quantization, load_format = sys.argv[1:6]

def load(folder):
    config = ModelConfig(folder, folder, folder, load_hf_config(folder), dtype, 1024, ("m",), quantization=quantization or None)
    return load_model(config, LoadConfig(load_format=load_format), torch.device("cpu"))

load(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
model = load(folder)
seconds = time.perf_counter() - start
growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(json.dumps({"seconds": seconds, "peak": growth, "weights": weight_bytes(model)}))
"""
_TRANSFORMERS = """
import json, resource, sys, time
import torch, transformers
from transformers import AutoModelForCausalLM

small, folder, dtype, safe = *sys.argv[1:4], sys.argv[5] == "safetensors"
transformers.utils.logging.disable_progress_bar()

def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=safe)
    sum(float(parameter.sum()) for parameter in model.parameters())  # every page, as Quire has read every page
    return model

load(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
model = load(folder)
seconds = time.perf_counter() - start
growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print(json.dumps({"seconds": seconds, "peak": growth, "weights": weights}))
"""

ROWS: dict[str, tuple[str, str, str]] = {
    "quire, safetensors": (_QUIRE, "", "safetensors"),
    "quire, .bin": (_QUIRE, "", "pt"),
    "quire, int8": (_QUIRE, "int8", "safetensors"),
    "quire, int4": (_QUIRE, "int4", "safetensors"),
    "transformers, safetensors": (_TRANSFORMERS, "", "safetensors"),
}
"""Program, quantization and file format of each row; the first is what ratios are to."""


def with_pickled_weights(folder: Path) -> None:
    """Write the weights beside the safetensors file as a .bin file too, once."""
    import torch
    from safetensors.torch import load_file

    target = folder / "pytorch_model.bin"
    if not target.exists():
        torch.save(load_file(folder / "model.safetensors"), target)


def measure(row: str, small: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """One load: seconds, and bytes of its peak and of the weights."""
    program, quantization, load_format = ROWS[row]
    command = [sys.executable, "-W", "ignore", "-c", program, str(small), str(folder), dtype, quantization]
    done = subprocess.run([*command, load_format], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarize(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians of each row, as ratios to the first row's time and to the row's own weights."""
    seconds = {row: statistics.median(each["seconds"] for each in found) for row, found in rounds.items()}
    first = seconds[next(iter(ROWS))]
    return {
        row: {
            "time_ratio": seconds[row] / first,
            "seconds": seconds[row],
            "gigabytes_per_second": found[0]["weights"] / seconds[row] / 1e9,
            "peak_to_weights": max(each["peak"] for each in found) / found[0]["weights"],
        }
        for row, found in rounds.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as Markdown."""
    lines = ["| load | time, to the first row | s | peak memory / weights |", "|---|--:|--:|--:|"]
    lines += [
        f"| {row} | {found['time_ratio']:.2f} | {found['seconds']:.2f} | {found['peak_to_weights']:.2f} |"
        for row, found in results.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="S", help="which checkpoint")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights in its files")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--to", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    small, folder = (make_checkpoint(shape, dtype=args.dtype) for shape in ("T", args.shape))
    with_pickled_weights(small)
    with_pickled_weights(folder)
    rounds: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    for row in ROWS:
        measure(row, small, folder, args.dtype)  # the page cache
    for _ in range(args.repeat):
        for row, found in rounds.items():
            found.append(measure(row, small, folder, args.dtype))
    results = summarize(rounds)
    print(json.dumps(results))
    print(table(results))
    if args.to:
        args.to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
