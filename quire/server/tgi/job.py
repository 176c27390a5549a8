"""One generation on its way through TGI's routes: checked, tokenized, asked of the engine, put into TGI's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequestError, describe
from quire.outputs import CompletionOutput, RequestOutput
from quire.server.args import ServerArgs
from quire.server.encoding import encode_prompt, max_input_tokens
from quire.server.generation import Generation
from quire.server.models import ServedModel
from quire.server.tgi.params import Options, check_lengths, read_options
from quire.server.tgi.schemas import GenerateRequest
from quire.server.tgi.tokens import TokenRenderer, finish_name, render_prefill


@dataclass(frozen=True, slots=True)
class Job:
    """A request that broke no rule."""

    model: ServedModel
    inputs: str
    options: Options
    prompt_token_ids: list[int]
    id: str

    @property
    def generation(self) -> Generation:
        """What the engine is asked."""
        return Generation(self.model, [self.prompt_token_ids], self.options.sampling, self.id)

    def text_of(self, choice: CompletionOutput) -> str:
        """`generated_text` of a sequence that is whole."""
        return self.inputs + choice.text if self.options.has_prompt else choice.text

    def whole(self, result: RequestOutput) -> dict[str, Any]:
        """The answer: the best sequence, and with details the others."""
        best, *others = sorted(result.outputs, key=_mean_logprob, reverse=True)
        body: dict[str, Any] = {"generated_text": self.text_of(best)}
        if self.options.has_details:
            prefill = self._prefill(result)
            body["details"] = self._details(best, prefill)
            if others:
                body["details"]["best_of_sequences"] = [
                    {"generated_text": self.text_of(choice), **self._details(choice, prefill)} for choice in others
                ]
        return body

    def seed_of(self, choice: CompletionOutput) -> int | None:
        """What gives this sequence again; None where nothing is drawn."""
        return None if self.options.seed is None else self.options.seed + choice.index

    def _prefill(self, result: RequestOutput) -> list[dict[str, Any]]:
        if not self.options.has_prefill:
            return []
        return render_prefill(self.model.tokenizer, result.prompt_token_ids, result.prompt_logprobs)

    def _details(self, choice: CompletionOutput, prefill: list[dict[str, Any]]) -> dict[str, Any]:
        renderer = TokenRenderer(self.model.tokenizer, self.prompt_token_ids)
        details = {
            "finish_reason": finish_name(choice),
            "generated_tokens": len(choice.token_ids),
            "seed": self.seed_of(choice),
            "prefill": prefill,
            "tokens": renderer.render(choice, choice.text),
        }
        if self.options.num_top:
            details["top_tokens"] = renderer.top_tokens(choice, self.options.num_top)
        return details


def _mean_logprob(choice: CompletionOutput) -> float:
    return (choice.cumulative_logprob or 0.0) / max(1, len(choice.token_ids))


async def make_job(
    model: ServedModel, request: GenerateRequest, limits: ServerArgs, job_id: str, *, is_stream: bool
) -> Job:
    """Check a request and tokenize its prompt. Raises InvalidRequestError; refusals are counted by the metrics."""
    with model.metrics.validation():
        if not request.inputs:
            raise InvalidRequestError(
                f"`inputs` must be text and not empty. Given: {describe(request.inputs)}", parameter="inputs"
            )
        options = read_options(request.parameters, limits, is_stream=is_stream)
        max_inputs = max_input_tokens(limits, model)
        if options.truncate is not None and options.truncate > max_inputs:
            raise InvalidRequestError(
                f"`truncate` must be at most {max_inputs}. Given: {options.truncate}", parameter="truncate"
            )
        token_ids = await encode_prompt(
            model, request.inputs, parameter="inputs", keep_last=options.truncate
        )
        check_lengths(len(token_ids), options, max_inputs, model.max_model_len)
        return Job(model, request.inputs, options, token_ids, job_id)
