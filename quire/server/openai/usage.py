"""Token counts of one response, summed over its prompts and choices."""

from __future__ import annotations

from typing import Any

from quire.outputs import RequestOutput


class UsageCounter:
    """Counts each prompt once and every output token; understands deltas as well as whole outputs."""

    def __init__(self, *, count_output: bool = True) -> None:
        self._count_output = count_output
        self._prompts: dict[int, tuple[int, int]] = {}
        self._num_completion_tokens = 0

    def add(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output of the prompt at `prompt_index`."""
        self._prompts[prompt_index] = (len(output.prompt_token_ids), output.num_cached_tokens or 0)
        if self._count_output:
            for choice in output.outputs:
                self._num_completion_tokens += len(choice.token_ids)

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        num_prompt_tokens = sum(num for num, _ in self._prompts.values())
        num_cached = sum(cached for _, cached in self._prompts.values())
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": num_prompt_tokens + self._num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": num_cached},
        }
