"""Streams keep their bytes, whatever becomes of the path that they take: the frames of every kind of request."""

from __future__ import annotations

import json

import pytest

from quire.server.context import ServerContext
from tests.server import golden

EXPECTED = json.loads(golden.FILE.read_text())


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`created` is the same in every run."""
    monkeypatch.setattr(ServerContext, "now", staticmethod(lambda: golden.CREATED))


@pytest.mark.parametrize("name", golden.cases())
async def test_the_bytes_of_a_stream(name: str) -> None:
    path, body = golden.cases()[name]
    assert await golden.answer(name, path, body) == EXPECTED[name]


def test_the_file_has_no_other_case() -> None:
    assert EXPECTED.keys() == golden.cases().keys()
