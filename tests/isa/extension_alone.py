"""Run as a program under an emulator: the built extension without torch or numpy, at every level that the processor has.

Arguments: the extension's file. Prints the levels, then "ok" if rms_norm gives the same bits at each.
"""

from __future__ import annotations

import array
import importlib.machinery
import importlib.util
import random
import sys
from typing import Any

ROWS, DIM = 3, 333


def load(path: str) -> Any:
    """quire._cpu from its file: the package around it would import torch."""
    loader = importlib.machinery.ExtensionFileLoader("_cpu", path)
    spec = importlib.util.spec_from_file_location("_cpu", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def rms_norm(extension: Any, level: str) -> bytes:
    """The bytes of a norm of the same random rows."""
    numbers = random.Random(0)
    x = array.array("f", (numbers.uniform(-4, 4) for _ in range(ROWS * DIM)))
    weight = array.array("f", (numbers.uniform(-4, 4) for _ in range(DIM)))
    out = array.array("f", bytes(4 * ROWS * DIM))
    extension.rms_norm(
        out=out.buffer_info()[0],
        residual_out=0,
        x=x.buffer_info()[0],
        weight=weight.buffer_info()[0],
        residual=0,
        rows=ROWS,
        heads=1,
        dim=DIM,
        x_stride=DIM,
        eps=1e-6,
        dtype=extension.FLOAT32,
        weight_dtype=extension.FLOAT32,
        level=extension.LEVEL_NAMES.index(level),
    ).run()
    return out.tobytes()


def main() -> None:
    """Exits non-zero if a level differs; an illegal instruction ends the process by a signal."""
    extension = load(sys.argv[1])
    extension.set_num_threads(2)
    print(*extension.levels())
    results = {rms_norm(extension, level) for level in extension.levels()}
    print("ok" if len(results) == 1 and any(results.pop()) else "FAILED")


if __name__ == "__main__":
    main()
