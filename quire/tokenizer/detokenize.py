"""The text of one request as its tokens arrive: incremental decoding, stop strings and what a stream may show.

It decides text only; truncating token ids and logprobs at `num_tokens` is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.tokenizer.stop import StopMatch, StopMatcher
from quire.tokenizer.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns output token ids into text, continuing the text of the prompt.

    Invariants, however the tokens are split over calls:
    - the deltas of `next_text`, joined, are `text`, and `text` is what decoding prompt and output together
    shows
      after the prompt (cut at the stop string, if one completed);
    - no U+FFFD is shown for bytes that a later token completes, and nothing shown is taken back;
    - of several stop strings the one that completes first wins, ties go to the first listed.

    Without stop strings nothing is decoded before somebody asks for text, and then all new tokens at once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._stream = tokenizer.make_stream(
            prompt_token_ids,
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        self._matcher = StopMatcher(stop) if any(stop) else None
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._shown: list[str] = []
        self._waiting = ""
        self._undecoded: list[int] = []
        self._is_complete = False
        self.num_tokens = 0
        """Output tokens consumed; once a stop string completed, the count up to and with its last token."""
        self.stop: str | None = None
        """The stop string that completed, or None."""

    def update(self, token_ids: Sequence[int]) -> str | None:
        """Append output tokens; returns the stop string that completed, else None.

        Tokens after that completion are ignored, now and later. Leave out a stop token whose text must not
        show.
        """
        if self._is_complete:
            return self.stop
        if self._matcher is None:
            self._undecoded += token_ids
            self.num_tokens += len(token_ids)
            return None
        for token_id in token_ids:
            self.num_tokens += 1
            if self._match(self._matcher, self._stream.push((token_id,))):
                break
        return self.stop

    def _match(self, matcher: StopMatcher, chunk: str) -> bool:
        """Append a chunk; on a completed stop string cut the text there and stop."""
        if not chunk:
            return False
        match = matcher.feed(chunk, self.num_tokens > self._min_tokens)
        if match is None:
            self._waiting += chunk
            return False
        self._cut(chunk, match)
        return True

    def _cut(self, chunk: str, match: StopMatch) -> None:
        """End the text at the match. The stop string's start was held back, so all of it is in the
        waiting text.
        """
        self.stop = match.stop
        self._is_complete = True
        text = self._waiting + chunk[: match.end]
        self._waiting = text if self._include_stop else text[: -len(match.stop)]

    def finish(self) -> None:
        """No more tokens: bytes that stayed incomplete become U+FFFD and nothing is held back. Idempotent."""
        if self._is_complete:
            return
        self._decode()
        self._is_complete = True
        self._waiting += self._stream.flush() if self.num_tokens else ""

    def _decode(self) -> None:
        if self._undecoded:
            self._waiting += self._stream.push(self._undecoded)
            self._undecoded = []

    @property
    def num_held(self) -> int:
        """Characters of `text` that are not shown yet because they may begin a stop string."""
        if self._is_complete or self._include_stop or self._matcher is None:
            return 0
        return self._matcher.num_held

    def next_text(self, finished: bool, delta: bool) -> str:
        """With `delta` the text to show since the last call, else all text that can be shown so far.

        `finished` says that no tokens follow, and releases everything.
        """
        if finished:
            self.finish()
        else:
            self._decode()
        num_held = self.num_held
        if num_held:
            num_ready = len(self._waiting) - num_held
            new, self._waiting = self._waiting[:num_ready], self._waiting[num_ready:]
        else:
            new, self._waiting = self._waiting, ""
        if new:
            self._shown.append(new)
        if delta:
            return new
        self._shown = ["".join(self._shown)]  # the next call joins two strings, however many tokens there are
        return self._shown[0]

    @property
    def text(self) -> str:
        """All settled text, shown or held back."""
        self._decode()
        return "".join(self._shown) + self._waiting
