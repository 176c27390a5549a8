"""`python -m quire.entrypoints.openai.api_server --model M --port P`: the same as `quire serve M --port P`."""

from __future__ import annotations

import sys

from quire.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
