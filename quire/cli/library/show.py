"""`quire show MODEL`: what a server knows of a model."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.library.client import add_host_argument, server_of

_PARTS = ("license", "modelfile", "parameters", "template", "system")
_SHAPE = ("context_length", "embedding_length")


def add_parser(subparsers: Any) -> None:
    """Add `show` to the commands."""
    parser = subparsers.add_parser(
        "show", help="show what is known of a model", description="Show what is known of a model."
    )
    parser.add_argument("model", metavar="MODEL")
    parts = parser.add_mutually_exclusive_group()
    for part in _PARTS:
        parts.add_argument(f"--{part}", dest="part", action="store_const", const=part, help=f"only the {part}")
    add_host_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The whole, or the part that was asked for."""
    found = server_of(args).post("/api/show", model=args.model)
    print(found.get(args.part) or "" if args.part else _describe(found))
    return 0


def _describe(found: dict[str, Any]) -> str:
    details, info = found["details"], found["model_info"]
    family = details["family"]
    model = [("architecture", family), ("parameters", details["parameter_size"])]
    model += [(name.replace("_", " "), info.get(f"{family}.{name}")) for name in _SHAPE]
    model += [("quantization", details["quantization_level"])]
    sections = [("Model", _rows(model)), ("Capabilities", [f"    {name}" for name in found["capabilities"]])]
    if found.get("parameters"):
        sections.append(("Parameters", _rows([line.split(maxsplit=1) for line in found["parameters"].splitlines()])))
    if found.get("license"):
        sections.append(("License", [f"    {line}" for line in found["license"].strip().splitlines()[:2]]))
    return "\n\n".join("\n".join([f"  {title}", *lines]) for title, lines in sections) + "\n"


def _rows(pairs: Any) -> list[str]:
    return [f"    {name:<20} {value}" for name, value in pairs if value not in (None, "")]
