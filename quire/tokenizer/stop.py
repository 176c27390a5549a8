"""Stop strings: finds the earliest completion in a text that arrives in chunks, and how much of it must wait.

One automaton per stop string (Knuth, Morris and Pratt 1977), so the work is linear in the text whatever the
stop
strings are, and does not depend on how the text was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    """A completed stop string; `end` is the index in the chunk just fed, one past its last character."""

    stop: str
    end: int


def _borders(stop: str) -> list[int]:
    """For each prefix length, the length of the longest proper prefix that is also its suffix."""
    borders = [0] * (len(stop) + 1)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length]
        length += stop[index] == stop[length]
        borders[index + 1] = length
    return borders


class _StopAutomaton:
    """`num_matched` is how many characters at the end of the text begin this stop string."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        self._borders = _borders(stop)

    def feed(self, chunk: str, can_stop: bool) -> int:
        """Index one past the completion in `chunk`, or 0."""
        if not self.num_matched and self.stop[0] not in chunk:
            return 0
        for end, char in enumerate(chunk, 1):
            if self._step(char) and can_stop:
                return end
        return 0

    def _step(self, char: str) -> bool:
        stop, borders, length = self.stop, self._borders, self.num_matched
        while length and stop[length] != char:
            length = borders[length]
        length += stop[length] == char
        is_complete = length == len(stop)
        self.num_matched = borders[length] if is_complete else length
        return is_complete


class StopMatcher:
    """All stop strings of one request. Empty strings are ignored."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_StopAutomaton(stop) for stop in stops if stop]

    def feed(self, chunk: str, can_stop: bool = True) -> StopMatch | None:
        """The stop string that completes first in `chunk`; of several that complete together, the first listed.

        With `can_stop` False completions are passed over (they may still begin a later one). After a match
        the
        matcher is spent.
        """
        best: StopMatch | None = None
        for automaton in self._automata:
            end = automaton.feed(chunk, can_stop)
            if end and (best is None or end < best.end):
                best = StopMatch(automaton.stop, end)
        return best

    @property
    def num_held(self) -> int:
        """Characters at the end of the text that may be the start of a stop string."""
        return max((automaton.num_matched for automaton in self._automata), default=0)
