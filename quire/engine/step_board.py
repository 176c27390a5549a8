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
"""Time of the latest turn (the system's monotonic clock, seconds; 0: none yet), turns, finished steps, key of the suspect that is
computed (0: none). The keys of all that are computed follow.

Eight aligned bytes each, so that none is ever seen half written.
"""
_NUM_STEPS_AT, _SUSPECT_AT = 16, 24
_WORD = struct.Struct("@Q")
_NO_KEY = 0


def sequence_key(request_id: str) -> int:
    """A sequence's name on the board: 64 bits of its id's hash."""
    return int.from_bytes(blake2b(request_id.encode(), digest_size=_WORD.size).digest(), "little")


class StepBoard:
    """Written by the engine's loop, without system calls; read by anybody who has the file."""

    def __init__(self, path: Path | None = None, capacity: int = 0) -> None:
        """Over a file that `create` made; without one, memory of this process alone. Room for `capacity` sequences."""
        if path is None:
            self._memory = mmap.mmap(-1, _HEAD.size + capacity * _WORD.size)
        else:
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)
        self._num_turns = self._num_steps = 0
        self._suspect: str | None = None
        self._places: dict[str, int] = {}
        """Where the key of each sequence stands."""
        self._free = list(range(_HEAD.size, len(self._memory), _WORD.size))

    @classmethod
    def create(cls, path: Path, capacity: int) -> StepBoard:
        """A new board in a new file."""
        path.write_bytes(bytes(_HEAD.size + capacity * _WORD.size))
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
        _WORD.pack_into(self._memory, _NUM_STEPS_AT, self._num_steps)

    def hold(self, removed: Iterable[str], added: Iterable[str]) -> None:
        """Before a step: which sequences the workers forget, and which they get."""
        for request_id in removed:
            place = self._places.pop(request_id, None)
            if place is not None:
                _WORD.pack_into(self._memory, place, _NO_KEY)
                self._free.append(place)
        for request_id in added:
            if self._free and request_id not in self._places:
                place = self._places[request_id] = self._free.pop()
                _WORD.pack_into(self._memory, place, sequence_key(request_id))

    def show_suspect(self, request_id: str | None) -> None:
        """The sequence that a death would now be laid to, or none."""
        if request_id != self._suspect:
            self._suspect = request_id
            _WORD.pack_into(self._memory, _SUSPECT_AT, _NO_KEY if request_id is None else sequence_key(request_id))

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

    @property
    def suspect(self) -> int:
        """Key of the suspect that is computed; 0: none."""
        return int(_HEAD.unpack_from(self._memory)[3])

    def held(self) -> list[int]:
        """Keys of the sequences that the workers hold."""
        return [key for key in array("Q", self._memory[_HEAD.size :]) if key != _NO_KEY]
