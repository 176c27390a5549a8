"""`python -m tools.models_page` measures every architecture and quantized format and writes the tables of docs/models.md.

Results gather in quire/models/proven.json. `--only NAME` measures the checkpoints, architectures and formats of these names
again and keeps what is known of the others; `--missing` measures those of which nothing is known; `--render` measures nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from quire.models import ModelRegistry
from quire.models.proven import FILE, Entry, is_green, read_proven

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARK = "<!-- From here on: python -m tools.models_page -->\n"

_ARCHITECTURE_HEAD = (
    "| architecture | reference | checkpoints | prompts with equal tokens | max logprob error | int8 perplexity "
    "| int4 perplexity | every schedule | |\n|---|---|--:|--:|--:|--:|--:|---|---|"
)
_ENCODER_HEAD = (
    "| architecture | reference | checkpoints | max error of a number | every schedule | |\n|---|---|--:|--:|---|---|"
)
_FORMAT_HEAD = (
    "| format | written by | weights equal | max weight error | max logprob error | memory / file | speed / bfloat16 |\n"
    "|---|---|--:|--:|--:|--:|--:|"
)


# -- measuring -----------------------------------------------------------------------------------------------


def measure(wanted: Callable[[str, str], bool]) -> None:
    """Measure what is `wanted` (by "architectures" or "formats", and a name) and keep it; writes after each."""
    from tests.quant.fixtures import FIXTURES
    from tools import format_measures, model_measures

    for name, case in model_measures.cases().items():
        if wanted("architectures", name) or wanted("architectures", case.architecture):
            with tempfile.TemporaryDirectory() as folder:
                _keep("architectures", name, {"architecture": case.architecture} | case.measure(Path(folder)))
    for fixture in FIXTURES:
        if wanted("formats", fixture.name):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    entry = format_measures.measure(fixture, Path(folder))
                except pytest.skip.Exception as missing:
                    print(f"{fixture.name} is left as it is: {missing}")
                    continue
                _keep("formats", fixture.name, entry)


def _keep(kind: str, name: str, entry: Entry) -> None:
    print(name, json.dumps(entry), flush=True)
    known = read_proven()
    known[kind][name] = entry
    ordered = {kind: dict(sorted(entries.items())) for kind, entries in known.items()}
    FILE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


# -- the page ------------------------------------------------------------------------------------------------


def updated(page: str) -> str:
    """The page with the tables of what is known."""
    return page[: page.index(MARK) + len(MARK)] + tables()


def tables() -> str:
    """Both tables, and the architectures that run through transformers in one of their own."""
    known = read_proven()
    by_name: dict[str, list[Entry]] = {}
    for entry in known["architectures"].values():
        by_name.setdefault(entry["architecture"], []).append(entry)
    names = ModelRegistry.get_supported_archs()
    own = [_row(name, _entries_of(name, by_name)) for name in names if not ModelRegistry.is_encoder(name)]
    encoders = [_encoder_row(name, _entries_of(name, by_name)) for name in names if ModelRegistry.is_encoder(name)]
    others = [_row(name, by_name[name]) for name in sorted(by_name) if not ModelRegistry.has(name)]
    formats = [_format_row(name, entry) for name, entry in known["formats"].items()]
    parts = [
        ("## Architectures with a file in Quire", _ARCHITECTURE_HEAD, own),
        ("## Architectures through transformers", _ARCHITECTURE_HEAD, others),
        ("## Encoders", _ENCODER_HEAD, encoders),
        ("## Quantized checkpoints", _FORMAT_HEAD, formats),
    ]
    return "".join("\n".join([f"\n{title}\n", head, *rows, ""]) for title, head, rows in parts)


def _entries_of(architecture: str, by_name: dict[str, list[Entry]]) -> list[Entry]:
    """What is known of an architecture, under this name or another one of the same class."""
    target = ModelRegistry.target(architecture)
    names = [architecture] if architecture in by_name else sorted(by_name)
    return [
        entry for name in names if ModelRegistry.has(name) and ModelRegistry.target(name) == target for entry in by_name[name]
    ]


def missing_architectures() -> list[str]:
    """Registered architectures without a green row."""
    known: dict[str, list[Entry]] = {}
    for entry in read_proven()["architectures"].values():
        known.setdefault(entry["architecture"], []).append(entry)
    rows = {name: _entries_of(name, known) for name in ModelRegistry.get_supported_archs()}
    return [name for name, entries in rows.items() if not entries or not all(map(is_green, entries))]


def _row(architecture: str, entries: list[Entry]) -> str:
    """One line: the worst of an architecture's checkpoints."""
    if not entries:
        return f"| `{architecture}` | | 0 | | | | | | not measured |"
    prompts, equal, ties = (sum(_numbers(entries, name)) for name in ("prompts", "prompts_equal", "near_ties"))
    parity = f"{equal} of {prompts}" + (f" ({ties} to a near tie)" if ties else "")
    cells = [
        f"`{architecture}`",
        ", ".join(sorted({entry["reference"] for entry in entries})),
        str(len(entries)),
        parity if prompts else "",
        _worst(entries, "max_logprob_error", ".0e"),
        _worst(entries, "int8_perplexity_ratio", ".4f"),
        _worst(entries, "int4_perplexity_ratio", ".3f"),
        _sameness(entries),
        "green" if all(map(is_green, entries)) else "**red**",
    ]
    return f"| {' | '.join(cells)} |"


def _encoder_row(architecture: str, entries: list[Entry]) -> str:
    """The same for a model that gives vectors or classes."""
    if not entries:
        return f"| `{architecture}` | | 0 | | | not measured |"
    cells = [
        f"`{architecture}`",
        ", ".join(sorted({entry["reference"] for entry in entries})),
        str(len(entries)),
        _worst(entries, "max_vector_error", ".0e"),
        _sameness(entries),
        "green" if all(map(is_green, entries)) else "**red**",
    ]
    return f"| {' | '.join(cells)} |"


def _sameness(entries: Iterable[Entry]) -> str:
    return "same bits" if all(entry.get("same_in_every_schedule") for entry in entries) else "**other bits**"


def _numbers(entries: Iterable[Entry], name: str) -> list[float]:
    return [entry[name] for entry in entries if name in entry]


def _worst(entries: Iterable[Entry], name: str, form: str) -> str:
    numbers = _numbers(entries, name)
    return format(max(numbers), form) if numbers else ""


def _format_row(name: str, entry: Entry) -> str:
    cells = [
        name,
        entry["tool"],
        f"{entry['weights_equal']} of {entry['weights']}",
        format(entry["max_weight_error"], ".0e") if entry["max_weight_error"] else "0",
        format(entry["max_logprob_error"], ".0e"),
        format(entry["memory_of_file"], ".2f"),
        format(entry["speed_of_bfloat16"], ".2f"),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these alone")
    parser.add_argument("--missing", action="store_true", help="measure what has no result yet")
    parser.add_argument("--render", action="store_true", help="write the page from the results as they are")
    args = parser.parse_args()
    if not args.render:
        known = read_proven()
        architectures = {entry["architecture"] for entry in known["architectures"].values()}
        measure(
            lambda kind, name: (not args.only or name in args.only)
            and (not args.missing or (name not in known[kind] and name not in architectures))
        )
    PAGE.write_text(updated(PAGE.read_text()))


if __name__ == "__main__":
    main()
