"""`RequestRecord`: what is known of a request when it has finished; every server's names are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from quire.sampling_params import SamplingParams


@dataclass(slots=True)
class RequestRecord:
    """Counts are tokens, times seconds; a time that the engine did not report is None."""

    params: SamplingParams
    num_prompt_tokens: int
    num_cached_tokens: int
    """Those of the prompt that were not computed for it."""
    num_output_tokens: int
    """Of all its sequences."""
    longest: int
    """Output tokens of its longest sequence."""
    num_preemptions: int
    elapsed_s: float
    queued_s: float | None
    """From arrival to the first scheduled token."""
    ttft_s: float | None
    """From arrival to the first token."""

    @property
    def inference_s(self) -> float:
        """All but the time in the queue."""
        return max(0.0, self.elapsed_s - (self.queued_s or 0.0))

    @property
    def prompt_s(self) -> float:
        """Time for the prompt; all of it for a request whose first token's time is unknown."""
        ttft = self.elapsed_s if self.ttft_s is None else self.ttft_s
        return max(0.0, ttft - (self.queued_s or 0.0))

    @property
    def decode_s(self) -> float:
        """Time after the first token."""
        return 0.0 if self.ttft_s is None else max(0.0, self.elapsed_s - self.ttft_s)
