"""`StepBoard`: what the engine's process shows of its loop in a few bytes of shared memory, which outlive it.

Others read there whether the loop still turns, and after a death which sequences were being computed.
"""

from __future__ import annotations

import mmap
import struct
import time
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

_HEAD = struct.Struct("@dQQQ")
"""Time of the latest turn (the system's monotonic clock, seconds; 0: none yet), turns, finished steps, sequences held.

Eight aligned bytes each, so that none is ever seen half written.
"""
_NUM_STEPS_AT, _NUM_HELD_AT = 16, 24
_COUNT = struct.Struct("@Q")
_KEY_BYTES = 8


def sequence_key(request_id: str) -> int:
    """A sequence's name on the board: 64 bits of its id's hash."""
    return int.from_bytes(blake2b(request_id.encode(), digest_size=_KEY_BYTES).digest(), "little")


class StepBoard:
    """Written by the engine's loop, without system calls; read by anybody who has the file."""

    def __init__(self, path: Path | None = None, capacity: int = 0) -> None:
        """Over a file that `create` made; without one, memory of this process alone. Room for `capacity` sequences."""
        if path is None:
            self._memory = mmap.mmap(-1, _HEAD.size + capacity * _KEY_BYTES)
        else:
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)
        self._num_turns = self._num_steps = 0
        self._held: dict[str, int] = {}

    @classmethod
    def create(cls, path: Path, capacity: int) -> StepBoard:
        """A new board in a new file."""
        path.write_bytes(bytes(_HEAD.size + capacity * _KEY_BYTES))
        return cls(path)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()

    # -- the engine writes ---------------------------------------------------------------------------------------

    def turn(self) -> None:
        """The loop begins anew, with or without work."""
        self._num_turns += 1
        struct.pack_into("@dQ", self._memory, 0, time.monotonic(), self._num_turns)

    def end_step(self) -> None:
        """A step was computed."""
        self._num_steps += 1
        _COUNT.pack_into(self._memory, _NUM_STEPS_AT, self._num_steps)

    def hold(self, removed: Iterable[str], added: Iterable[str]) -> None:
        """Before a step: which sequences the workers forget, and which they get."""
        for request_id in removed:
            self._held.pop(request_id, None)
        for request_id in added:
            self._held[request_id] = sequence_key(request_id)
        keys = array("Q", self._held.values())[: self._capacity]
        _COUNT.pack_into(self._memory, _NUM_HELD_AT, 0)  # a death in between blames nobody
        self._memory[_HEAD.size : _HEAD.size + len(keys) * _KEY_BYTES] = keys.tobytes()
        _COUNT.pack_into(self._memory, _NUM_HELD_AT, len(keys))

    # -- anybody reads -------------------------------------------------------------------------------------------

    @property
    def num_turns(self) -> int:
        """How often the loop began anew; 0 while the model is loaded."""
        return int(_HEAD.unpack_from(self._memory)[1])

    @property
    def num_steps(self) -> int:
        """Steps that were computed."""
        return int(_HEAD.unpack_from(self._memory)[2])

    @property
    def stalled_s(self) -> float:
        """Seconds since the loop last began anew; 0 before its first turn."""
        turned_at = float(_HEAD.unpack_from(self._memory)[0])
        return max(0.0, time.monotonic() - turned_at) if turned_at else 0.0

    def held(self) -> list[int]:
        """Keys of the sequences that the workers hold."""
        count = min(int(_HEAD.unpack_from(self._memory)[3]), self._capacity)
        keys = array("Q", self._memory[_HEAD.size : _HEAD.size + count * _KEY_BYTES])
        return keys.tolist()

    @property
    def _capacity(self) -> int:
        return (len(self._memory) - _HEAD.size) // _KEY_BYTES
