"""Messages over pipes between a parent and its children: msgpack, each after its length in eight bytes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

_Message = TypeVar("_Message")

_LENGTH = struct.Struct("<Q")


def write_frame(fd: int, message: Any) -> None:
    """Write one message whole. Raises BrokenPipeError when nobody reads any more."""
    content = msgspec.msgpack.encode(message)
    rest = memoryview(_LENGTH.pack(len(content)) + content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_frame(fd: int, kind: Any) -> Any:
    """Wait for one message of that type; None at the end of the pipe, also in the middle of a message.

    Takes no byte of the next one: others may read on from the same descriptor.
    """
    head = _read_exactly(fd, _LENGTH.size)
    content = None if head is None else _read_exactly(fd, *_LENGTH.unpack(head))
    return None if content is None else msgspec.msgpack.decode(content, type=kind)


def _read_exactly(fd: int, count: int) -> bytes | None:
    pieces = []
    while count:
        piece = os.read(fd, count)
        if not piece:
            return None
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


class FrameBuffer(Generic[_Message]):
    """Messages from bytes that arrive in pieces."""

    def __init__(self, kind: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[_Message]:
        """The messages that these bytes complete."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._bytes)[0]
            if len(self._bytes) < end:
                return
            content = bytes(self._bytes[_LENGTH.size : end])
            del self._bytes[:end]
            yield self._decode(content)
