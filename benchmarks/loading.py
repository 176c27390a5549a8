"""How long a checkpoint takes to load, as ratios within one run: Quire beside transformers, safetensors beside .bin, one file
beside shards.

    python -m benchmarks.loading [--shape S] [--dtype bfloat16] [--shards 8] [--cold] [--repeat 3] [--to results.json]

Every load is a process of its own that has loaded a small checkpoint before, and its time is that of the load alone. Imports
are warm, and so is the page cache of the files, unless with --cold, which drops them from it before each load. Each round loads
with all of them, and begins with another one; times are medians over the rounds. Memory is what the load added at its highest,
beside the size of the weights. transformers loads what it computes with, so does Quire: packed weights. No quantization unless a
row says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, make_checkpoint
from quire import platform

_PEAK = """
def peak():
    # Not ru_maxrss: a new process begins with that of its parent.
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""
_QUIRE = _PEAK + """
import json, sys, time
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
before = peak()
start = time.perf_counter()
model = load(folder)
seconds = time.perf_counter() - start
growth = peak() - before
print(json.dumps({"seconds": seconds, "peak": growth, "weights": weight_bytes(model)}))
"""
_TRANSFORMERS = _PEAK + """
import json, sys, time
import torch, transformers
from transformers import AutoModelForCausalLM

small, folder, dtype, safe = *sys.argv[1:4], sys.argv[5] == "safetensors"
transformers.utils.logging.disable_progress_bar()

def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=safe)
    sum(float(parameter.sum()) for parameter in model.parameters())  # every page, as Quire has read every page
    return model

load(small)
before = peak()
start = time.perf_counter()
model = load(folder)
seconds = time.perf_counter() - start
growth = peak() - before
weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print(json.dumps({"seconds": seconds, "peak": growth, "weights": weights}))
"""

@dataclass(frozen=True)
class Load:
    """What a row of the table loads, and with what."""

    program: str
    form: str = "one file"
    """The folder: `one file`, `shards` or `.bin`."""
    quantization: str = ""


ROWS: dict[str, Load] = {
    "quire": Load(_QUIRE),
    "quire, shards": Load(_QUIRE, "shards"),
    "quire, .bin": Load(_QUIRE, ".bin"),
    "quire, int8": Load(_QUIRE, quantization="int8"),
    "quire, int4": Load(_QUIRE, quantization="int4"),
    "quire, int4, shards": Load(_QUIRE, "shards", "int4"),
    "transformers": Load(_TRANSFORMERS),
    "transformers, shards": Load(_TRANSFORMERS, "shards"),
    "transformers, .bin": Load(_TRANSFORMERS, ".bin"),
}
"""The first is what ratios are to."""


def write_forms(whole: Path, folder: Path, num_shards: int) -> dict[str, Path]:
    """The checkpoint in `whole`, one safetensors file, as shards and as .bin below `folder` too; the folder of each form."""
    import torch
    from safetensors.torch import load_file, save_file

    forms = {"one file": whole, "shards": folder / "shards", ".bin": folder / "bin"}
    for form in ("shards", ".bin"):
        forms[form].mkdir(parents=True)
        for file in whole.glob("*.json"):
            shutil.copy(file, forms[form])
    tensors = load_file(whole / "model.safetensors")
    torch.save(tensors, forms[".bin"] / "pytorch_model.bin")
    weight_map = {}
    for number, names in enumerate(divide(tensors, num_shards), start=1):
        name = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        save_file({key: tensors[key] for key in names}, forms["shards"] / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (forms["shards"] / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return forms


def divide(tensors: dict[str, Any], num_shards: int) -> list[list[str]]:
    """Names of the tensors in order, cut into shards of about the same size; each has one at least."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[list[str]] = [[]]
    seen = 0
    for left, (name, tensor) in zip(range(len(tensors), 0, -1), tensors.items(), strict=True):
        wants_next = seen * num_shards >= total * len(shards) or left <= num_shards - len(shards)
        if shards[-1] and len(shards) < num_shards and wants_next:
            shards.append([])
        shards[-1].append(name)
        seen += tensor.nbytes
    return shards


def drop_from_cache(folder: Path) -> None:
    """The system forgets the files' pages (Linux only)."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(row: str, small: dict[str, Path], forms: dict[str, Path], dtype: str, is_cold: bool = False) -> dict[str, Any]:
    """One load: seconds, and bytes of its peak and of the weights."""
    load = ROWS[row]
    if is_cold:
        drop_from_cache(forms[load.form])
    load_format = "pt" if load.form == ".bin" else "safetensors"
    command = [sys.executable, "-W", "ignore", "-c", load.program, str(small[load.form]), str(forms[load.form]), dtype]
    done = subprocess.run([*command, load.quantization, load_format], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{row} failed:\n{done.stderr}")
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
    """The results as Markdown, for docs/performance-log.md."""
    lines = ["| load | time / that of quire | s | GB/s | peak memory / weights |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {row} | {found['time_ratio']:.2f} | {found['seconds']:.2f} | {found['gigabytes_per_second']:.2f} "
        f"| {found['peak_to_weights']:.2f} |"
        for row, found in results.items()
    ]
    return "\n".join(lines)


def title(args: argparse.Namespace) -> str:
    """What the table is of."""
    shape = f"{SHAPES[args.shape].title} in {args.dtype}, shards: {args.shards}, rounds: {args.repeat}"
    cache = "dropped from the page cache before each load" if args.cold else "in the page cache"
    return f"Loading {shape}; files {cache}. {platform.cpu_model()}, {platform.cpu_count()} threads."


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="S", help="which checkpoint")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights in its files")
    parser.add_argument("--shards", type=int, default=8, help="files of the sharded form")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each load")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--to", type=Path, help="where to write the results as JSON")
    return parser.parse_args()


def run(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """All rounds; what is made for them lies in `folder`."""
    small, forms = (
        write_forms(make_checkpoint(shape, dtype=args.dtype), folder / shape / what, min(args.shards, limit))
        for shape, what, limit in (("T", "small", 2), (args.shape, "large", args.shards))
    )
    rows = list(ROWS)
    rounds: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    if not args.cold:
        for row in rows:
            measure(row, small, forms, args.dtype)
    for number in range(args.repeat):
        first = number % len(rows)
        for row in rows[first:] + rows[:first]:
            rounds[row].append(measure(row, small, forms, args.dtype, args.cold))
    return summarize(rounds)


def main() -> None:
    """Measure, print a table."""
    args = parse()
    with tempfile.TemporaryDirectory(prefix="quire-loading-") as folder:
        results = run(args, Path(folder))
    print(f"{title(args)}\n\n{table(results)}")
    if args.to:
        args.to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
