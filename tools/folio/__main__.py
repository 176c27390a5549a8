"""Makes everything anew: `python -m tools.folio` trains both models, exports, evaluates and draws the curves.

`--resume` goes on from the checkpoints that there are, up to the plans in `train.py`.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tools.folio.evaluate import RESULTS
from tools.folio.export import BUILTIN

# Threads that wait asleep: on a shared machine a waiting thread that spins takes time from the one that works.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def run(module: str, *args: str | Path) -> None:
    command = [sys.executable, "-m", f"tools.folio.{module}", *map(str, args)]
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoints")
    resume = ["--resume"] if parser.parse_args().resume else []
    run("train", "--name", "folio", *resume)
    run("train", "--name", "folio-draft", "--no-compile", *resume)
    for name in ("folio", "folio-draft"):
        run("export", "--name", name)
    folio, draft = BUILTIN / "folio", BUILTIN / "folio-draft"
    run("evaluate", "--model", folio, "--to", RESULTS / "folio.json")
    run("evaluate", "--model", draft, "--main", folio, "--to", RESULTS / "folio-draft.json")
    run("curve")
    run("card")


if __name__ == "__main__":
    main()
