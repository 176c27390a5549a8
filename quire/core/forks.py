"""`WaitingForks`: requests that share another's prompt (n > 1) and wait, outside the queue, until it is computed."""

from __future__ import annotations

from collections.abc import Iterator

from quire.core.request import Request


def is_prompt_computed(request: Request) -> bool:
    """Whether a fork of this request may share its prompt blocks as soon as it holds them."""
    return request.num_computed_tokens >= request.num_prompt_tokens


class WaitingForks:
    """Forks by parent id, each with `parent` set. Waiting costs a step nothing."""

    def __init__(self) -> None:
        self._by_parent: dict[str, list[Request]] = {}
        self._num_forks = 0

    def __len__(self) -> int:
        return self._num_forks

    def __iter__(self) -> Iterator[Request]:
        return (fork for forks in self._by_parent.values() for fork in forks)

    def push(self, fork: Request, parent: Request) -> None:
        """Wait for the parent's prompt."""
        self._by_parent.setdefault(parent.request_id, []).append(fork)
        self._num_forks += 1

    def pop_all(self, parent: Request) -> list[Request]:
        """Take out all forks of a parent: its prompt is computed, or it leaves."""
        forks = self._by_parent.pop(parent.request_id, [])
        self._num_forks -= len(forks)
        return forks

    def discard(self, fork: Request) -> bool:
        """Take out one fork; False when it does not wait here (any more)."""
        siblings = self._by_parent.get(fork.parent.request_id, []) if fork.parent is not None else []
        if fork not in siblings:
            return False
        siblings.remove(fork)
        self._num_forks -= 1
        return True
