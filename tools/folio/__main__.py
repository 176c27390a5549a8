"""Makes everything anew: `python -m tools.folio` trains both models, exports, evaluates and draws the curves."""

import subprocess
import sys
from pathlib import Path

from tools.folio.evaluate import RESULTS
from tools.folio.export import BUILTIN
from tools.folio.train import WORK


def run(module: str, *args: str | Path) -> None:
    subprocess.run([sys.executable, "-m", f"tools.folio.{module}", *map(str, args)], check=True)


def main() -> None:
    run("train", "--name", "folio")
    run("train", "--name", "folio-draft", "--teacher", WORK / "folio" / "checkpoint.pt")
    for name in ("folio", "folio-draft"):
        run("export", "--name", name)
    folio, draft = BUILTIN / "folio", BUILTIN / "folio-draft"
    run("evaluate", "--model", folio, "--draft", draft, "--to", RESULTS / "folio.json")
    run("evaluate", "--model", draft, "--to", RESULTS / "folio-draft.json")
    run("curve")


if __name__ == "__main__":
    main()
