"""Everything that is due on a machine with a GPU, in one call: build, tests on CUDA, its CPU's kernels, measurements.

    python -m benchmarks.gpu [--out DIR] [--only SECTION ...]

Sections run one after another, each within its own time; one that fails stops none of the others. What a section prints goes to
`DIR/SECTION.txt`, and its last lines to the screen. Needs torch with CUDA, the packages of Quire, pytest, cmake and ninja, but no
installed Quire: the extension is built beside the sources.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BUILD = "/tmp/quire-gpu-build"
_NO_GPU = "CUDA_VISIBLE_DEVICES="
_PYTEST = "python -m pytest -q -x --no-header -p no:cacheprovider -W default"


@dataclass(frozen=True)
class Section:
    """Commands of a shell, and how long they may take together."""

    command: str
    limit_s: int
    num_lines: int = 6
    """How many of the last lines the screen shows."""


SECTIONS = {
    "machine": Section("nvidia-smi; lscpu; free -g; python -c 'import torch; print(torch.__version__)'", 30, 3),
    "build": Section(
        f"cmake -S . -B {_BUILD} -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(command -v python)"
        f" && ninja -C {_BUILD} && cp {_BUILD}/csrc/cpu/_cpu*.so quire/",
        180,
    ),
    "doctor": Section("python -m quire doctor --bench", 60, 60),
    "cuda": Section(f"{_PYTEST} tests/gpu --maxfail=10", 200, 40),
    "cuda-speed": Section("python -m benchmarks.gpu.generate", 120, 20),
    "cpu-kernels": Section(f"{_NO_GPU} {_PYTEST} tests/ops tests/isa -m '' --maxfail=10", 180, 20),
    "cpu-equivalence": Section(f"{_NO_GPU} {_PYTEST} tests/equivalence", 120, 10),
    "cpu-steps": Section(f"{_NO_GPU} python -m benchmarks.whole_steps --rounds 1", 150, 40),
}


def run(name: str, section: Section, out: Path) -> bool:
    """One section; whether it ended well."""
    path, start = out / f"{name}.txt", time.monotonic()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }
    with path.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", section.command],
            cwd=_ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            verdict = "ok" if process.wait(section.limit_s) == 0 else f"FAILED ({process.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            verdict = f"FAILED (more than {section.limit_s} s)"
    lines = path.read_text(errors="replace").splitlines()
    print(f"\n==== {name}: {verdict}, {time.monotonic() - start:.0f} s")
    print("\n".join(line[:240] for line in lines[-section.num_lines :]), flush=True)
    return verdict == "ok"


def main() -> None:
    """Run the sections; exit 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-report")))
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = [run(name, SECTIONS[name], args.out) for name in args.only]
    raise SystemExit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
