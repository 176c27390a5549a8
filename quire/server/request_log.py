"""`RequestLog`: prompts and parameters in the log, for those who ask for it (`--enable-log-requests`). Nothing else writes a
request's text there.
"""

from __future__ import annotations

from quire.log import get_logger
from quire.sampling_params import SamplingParams

_log = get_logger(__name__)


class RequestLog:
    """Writes a line for each generation that begins."""

    def __init__(self, max_len: int | None) -> None:
        """`max_len`: most characters, or token ids, of a prompt; None: all."""
        self._max_len = max_len

    def write(self, request_id: str, prompt: str | list[int], params: SamplingParams) -> None:
        """A generation begins."""
        shown = prompt if self._max_len is None else prompt[: self._max_len]
        _log.info("request %s: prompt %r, %s", request_id, shown, params)
