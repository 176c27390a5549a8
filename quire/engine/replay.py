"""`Replay`: what outlives a process of the engine. Every unfinished sequence, as a command that lets another process go on with
it; and the suspicion that a request was the cause.

Sampling is a pure function of (logits, parameters, seed, position), so a sequence that is sent again with the tokens that were
received goes on as if nothing had been. A token that was computed and never arrived is computed once more.

Suspicion. Who was computed when a process died, and has got no token since the death before, gathers evidence: three points where
the process broke by itself, one where somebody else may have killed it. With two points a sequence is a suspect, and the core
computes suspects one at a time. With six it is the cause: the second fault, or the sixth kill, four of them with no other suspect
beside it. A token clears it, also one that did not arrive any more: the core says which suspect it was computing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from quire.engine.messages import AddRequest, EngineDown
from quire.engine.outputs import RequestState
from quire.engine.step_board import sequence_key

FAULT, KILL = 3, 1
"""Points for a process that broke by itself, and for one that somebody else may have killed."""
SUSPICION = 2
"""Points that make a suspect."""
PROOF = 6
"""Points that make the cause."""

LiveSequence = tuple[RequestState, int]
"""A request, and the index of one of its sequences that has not ended."""


@dataclass(slots=True)
class _Evidence:
    num_tokens: int
    """Of the sequence, when a process died with it."""
    points: int
    num_deaths: int


class Replay:
    """The evidence against each live sequence."""

    def __init__(self) -> None:
        self._evidence: dict[str, _Evidence] = {}

    def note_death(self, down: EngineDown, live: Iterable[LiveSequence]) -> dict[str, str]:
        """A process has died, and all that it said was taken in. Returns the requests that are the cause, and why."""
        held, points = frozenset(down.held), FAULT if down.is_own_fault else KILL
        evidence: dict[str, _Evidence] = {}
        causes: dict[str, str] = {}
        for state, index in live:
            sequence_id = state.child_ids[index]
            known = self._known(state, index)
            key = sequence_key(sequence_id)
            if known.points >= SUSPICION and key in held and key != down.suspect:
                known = _Evidence(known.num_tokens, 0, 0)  # it had got the token that clears it, and the news was lost
            if key in held:
                known.points += points
                known.num_deaths += 1
            if known.points >= PROOF:
                causes[state.request_id] = _accuse(known, down.reason)
            elif known.points:
                evidence[sequence_id] = known
        self._evidence = evidence
        return causes

    def _known(self, state: RequestState, index: int) -> _Evidence:
        num_tokens = len(state.sequences[index].token_ids)
        known = self._evidence.get(state.child_ids[index])
        if known is None or known.num_tokens != num_tokens:
            return _Evidence(num_tokens, 0, 0)
        return known

    def commands(self, live: Iterable[LiveSequence]) -> list[AddRequest]:
        """What makes another process go on with all of these: in their order, but of the suspects the strongest first, so that no
        new one keeps it waiting.
        """
        first: dict[str, int] = {}
        commands = []
        for state, index in live:
            parent = first.setdefault(state.request_id, index)  # the first sequence of the request may have ended
            fork_of = None if parent == index else state.child_ids[parent]
            commands.append(self._command(state, index, fork_of))
        return sorted(commands, key=self._suspicion)

    def _suspicion(self, command: AddRequest) -> int:
        return -self._evidence[command.request_id].points if command.is_suspect else 0

    def _command(self, state: RequestState, index: int, fork_of: str | None) -> AddRequest:
        return msgspec.structs.replace(
            state.request.children[index],
            output_token_ids=list(state.sequences[index].token_ids),
            num_prompt_logprobs=state.num_prompt_logprobs if index == 0 else 0,
            fork_of=fork_of,
            is_replay=True,
            is_suspect=self._known(state, index).points >= SUSPICION,
        )


def _accuse(evidence: _Evidence, reason: str) -> str:
    return (
        f"this request was given up: the engine died {evidence.num_deaths} times while it computed token "
        f"{evidence.num_tokens + 1} of its output, at last with no other suspect beside it ({reason})"
    )
