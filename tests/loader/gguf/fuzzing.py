"""Damaged files: how they come about, and what reading them may do."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Callable

from quire.errors import QuireError

FUZZ_SECONDS = float(os.environ.get("QUIRE_FUZZ_SECONDS", "600"))
_SLACK = 64 * 1024
"""Memory of Python objects, whatever the file."""


def reads_or_complains(read: Callable[[], object], num_bytes: int) -> None:
    """Nothing but an error of Quire's, and no memory to speak of beside files of `num_bytes`."""
    tracemalloc.start()
    try:
        read()
    except QuireError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= 2 * num_bytes + _SLACK


def damage(rng: random.Random, whole: bytes) -> bytes:
    """Some bytes changed, taken out or put in; numbers that lie are likely."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        number = struct.pack("<Q", 2 ** rng.randrange(64))
        new = rng.choice([b"\xff" * 8, number, bytes(8), rng.randbytes(rng.randint(0, 9))])
        data[at : at + rng.choice([0, len(new), len(new), 8, rng.randrange(200)])] = new
    return bytes(data)
