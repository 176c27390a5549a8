"""`Fault`: for tests of recovery only, an engine that sends itself a signal when it computes a certain prompt."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from quire import envs
from quire.batch import ScheduledBatch


class Fault:
    """Strikes in the first step of every sequence whose prompt contains `token_ids` in a row."""

    def __init__(self, number: signal.Signals, token_ids: Sequence[int]) -> None:
        self._number = number
        self._token_ids = list(token_ids)

    @classmethod
    def from_environment(cls) -> Fault | None:
        """What QUIRE_TEST_FAULT asks for; None, as it should be, where it is not set. Raises ConfigError."""
        asked = envs.TEST_FAULT.read()
        return None if asked is None else cls(*asked)

    def strike(self, batch: ScheduledBatch) -> None:
        """Called before the batch is computed; does not return if the signal kills."""
        if any(self._is_meant(request.token_ids[: request.num_prompt_tokens]) for request in batch.new_requests):
            os.kill(os.getpid(), self._number)

    def _is_meant(self, prompt: list[int]) -> bool:
        length = len(self._token_ids)
        return any(prompt[start : start + length] == self._token_ids for start in range(len(prompt) - length + 1))
