"""`Bulletin`: in which order, and how often, streams are told of news."""

from __future__ import annotations

import asyncio
from typing import Any

from quire.engine.output_stream import Bulletin, RequestStream


class Readers:
    """Streams named by letters, and who was told of news, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stream(self, name: str, *, is_new: bool = False) -> RequestStream:
        state: Any = None
        stream = RequestStream(state, lambda: self.told.append(name), lambda _: None)
        stream.is_new = is_new
        return stream


async def turns(num: int) -> None:
    for _ in range(num):
        await asyncio.sleep(0)


async def test_the_new_are_told_first_and_the_others_two_turns_later() -> None:
    readers, bulletin = Readers(), Bulletin()
    a, b, c = readers.stream("a"), readers.stream("b", is_new=True), readers.stream("c")
    bulletin.tell([a, b, c])
    await turns(1)
    assert readers.told == ["b"]
    await turns(2)
    assert readers.told == ["b", "a", "c"]
    bulletin.tell([c, b, a])
    assert readers.told[3:] == ["c", "b", "a"], "none is new any more"


def test_nobody_waits_without_a_reason() -> None:
    readers, bulletin = Readers(), Bulletin()
    bulletin.tell([readers.stream("a", is_new=True), readers.stream("b", is_new=True)])  # no loop runs here
    bulletin.tell([readers.stream("c")])
    assert readers.told == ["a", "b", "c"]


async def test_who_waits_is_told_once_of_all_that_came() -> None:
    readers, bulletin = Readers(), Bulletin()
    a, b, new = readers.stream("a"), readers.stream("b"), readers.stream("new", is_new=True)
    bulletin.tell([new, a])
    bulletin.tell([b, a, new])
    assert readers.told == ["new"]
    await turns(3)
    assert readers.told == ["new", "a", "b", "new"]


async def test_a_stream_that_is_closed_while_it_waits_is_not_told() -> None:
    readers, bulletin = Readers(), Bulletin()
    a, new = readers.stream("a"), readers.stream("new", is_new=True)
    a._state = type("Ended", (), {"finished": True})  # type: ignore[assignment]
    bulletin.tell([new, a])
    a.close()
    await turns(3)
    assert readers.told == ["new"]
