"""`python -m quire.entrypoints.tgi --model-id M`: the same as `quire launcher --model-id M`."""

from __future__ import annotations

import sys

from quire.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["launcher", *sys.argv[1:]]))
