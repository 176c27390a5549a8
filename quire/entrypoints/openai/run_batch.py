"""`python -m quire.entrypoints.openai.run_batch -i FILE -o FILE --model M`: the same as `quire run-batch`."""

from __future__ import annotations

import sys

from quire.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run-batch", *sys.argv[1:]]))
