"""Writes the measured figures into the model cards, between their two marks: `python -m tools.folio.card`."""

import json
import re

from tools.folio.evaluate import RESULTS, THRESHOLDS
from tools.folio.export import BUILTIN
from tools.folio.model import SHAPES, SmallLlama
from tools.folio.train import PLANS, Stage

START, END = "<!-- figures -->", "<!-- end of figures -->"


def num_tokens(name: str) -> int:
    return sum(map(Stage.num_tokens, PLANS[name].stages))


def table(results: dict, thresholds: dict[str, float]) -> list[str]:
    lines = ["| asked for | exact | cases | at least |", "|---|--:|--:|--:|"]
    for category, share in results["exact"].items():
        least = f"{thresholds[category]:.0%}" if category in thresholds else ""
        lines.append(f"| {category} | {share:.1%} | {results['num_cases'][category]} | {least} |")
    return lines


def figures(name: str) -> str:
    """The block of one card: size, training, table and, for folio, samples of what it says."""
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    size = (BUILTIN / name / "model.safetensors").stat().st_size
    lines = [
        f"Parameters: {SmallLlama(SHAPES[name]).num_parameters():,} ({size / 1e6:.1f} MB in bfloat16). "
        f"Trained on {num_tokens(name) / 1e6:.1f} million tokens in {PLANS[name].steps:,} steps.",
        "",
        *table(results, THRESHOLDS if name == "folio" else {}),
    ]
    if name == "folio":
        lines += ["", "Greedy answers, as they come:", ""]
        lines += [f"- {sample['asked']!r} -> {sample['got']!r}" for sample in results["samples"]]
        agreement = json.loads((RESULTS / "folio-draft.json").read_text(encoding="utf-8")).get("agreement")
        if agreement:
            lines += [
                "",
                f"`folio-draft` guesses {agreement:.1%} of folio's greedy tokens on these questions.",
            ]
    return "\n".join([START, *lines, END])


def update(name: str) -> None:
    card, block = BUILTIN / name / "README.md", figures(name)
    text = re.sub(f"{START}.*{END}", lambda _: block, card.read_text(encoding="utf-8"), flags=re.DOTALL)
    card.write_text(text, encoding="utf-8")


def main() -> None:
    for name in SHAPES:
        update(name)


if __name__ == "__main__":
    main()
