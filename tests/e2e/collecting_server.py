"""`quire`, with a garbage collection each second: for tests that measure what a server holds on to. Left alone, Python lets
cycles wait for thousands of requests.
"""

from __future__ import annotations

import gc
import sys
import threading
import time

from quire.cli.main import main


def _collect_forever() -> None:
    while True:
        time.sleep(1)
        gc.collect()


if __name__ == "__main__":
    threading.Thread(target=_collect_forever, daemon=True).start()
    sys.exit(main())
