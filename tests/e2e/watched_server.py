"""`quire`, which on SIGUSR1 tells what its event loop has: for tests that look for what a server forgets to end.

A line of JSON on standard error: the tasks by the name of their coroutine, and the live objects by their type.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections import Counter
from types import FrameType

from quire.cli.main import main

MARK = "watched: "
_MAX_TYPES = 300


def _tell(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread, and so in a turn of its event loop."""
    gc.collect()
    types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    content = {
        "tasks": Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks()),
        "objects": dict(types.most_common(_MAX_TYPES)),
    }
    os.write(sys.stderr.fileno(), f"{MARK}{json.dumps(content)}\n".encode())


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tell)
    sys.exit(main())
