"""docs/security.md: every test that its table names exists, every row is answered, and what it says of limits is so."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from quire.config.engine_args import EngineArgs
from quire.sampling_params import MAX_BAD_WORDS, MAX_LIST, MAX_STOP_STRINGS, MAX_STRING_CHARS
from quire.server.app import APIS
from quire.server.args import ServerArgs
from quire.server.errors import MAX_MESSAGE_CHARS
from quire.server.http_limits import MAX_HEAD_BYTES, MAX_HEADERS
from quire.server.json_schema import MAX_DEPTH
from quire.server.openai.inputs import MAX_PROMPTS
from quire.server.openai.params import MAX_CHOICES
from quire.server.openai.tools import MAX_TOOLS
from quire.server.prompts import MAX_MESSAGES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
NUM_RULES = 38
"""Rows of the table, one for each kind of hole that servers like this one had."""


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def rows() -> list[list[str]]:
    """Cells of the table of rules."""
    table = PAGE.partition("## Known holes")[2]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[1:]]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: value)
def test_the_test_exists(path: str, name: str) -> None:
    assert name.startswith("test_") and name in functions_of(path)


def test_every_rule_is_answered() -> None:
    assert len(rows()) >= NUM_RULES
    for row in rows():
        assert len(row) == 3, row
        advisory, rule, answer = row
        assert advisory and rule and ("tests/" in answer or answer.endswith(".")), row
    assert len(NAMED) >= 40


def test_limits_are_as_they_are_said_to_be() -> None:
    limits = PAGE.partition("## Limits")[2].partition("\n## ")[0]
    for number in (
        MAX_HEAD_BYTES // 2**10, MAX_HEADERS, MAX_STOP_STRINGS, MAX_STRING_CHARS, MAX_BAD_WORDS, MAX_LIST, MAX_PROMPTS,
        MAX_CHOICES, MAX_MESSAGES, MAX_TOOLS, MAX_DEPTH, MAX_MESSAGE_CHARS,
    ):  # fmt: skip
        assert re.search(rf"\b{number:,}\b", limits) or re.search(rf"\b{number}\b", limits), number


def test_its_options_exist() -> None:
    known = set(ServerArgs.__dataclass_fields__) | set(EngineArgs.__dataclass_fields__)
    for option in re.findall(r"`--([\w-]+)", PAGE):
        assert option.replace("-", "_") in known, option


def test_the_public_routes_are_those_that_it_names() -> None:
    public = {f"{route.method} {route.path}" for api in APIS for route in api.routes if route.is_open}
    assert public <= set(re.findall(r"`((?:GET|POST) [^`]+)`", PAGE))
