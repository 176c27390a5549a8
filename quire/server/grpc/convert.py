"""Between the messages of `quire.proto` and Quire's own types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quire.errors import InvalidRequestError
from quire.outputs import CompletionOutput, LogprobsAtPosition, RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.server.args import ServerArgs
from quire.server.encoding import encode_prompt, max_input_tokens
from quire.server.grpc import messages
from quire.server.models import ServedModel
from quire.server.prompts import check_messages, render_prompt

_OPTIONAL = (
    "n",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


def read_sampling(request: Any, model: ServedModel, kind: RequestOutputKind) -> SamplingParams:
    """The model's defaults, then what the request sets. Raises InvalidRequestError."""
    given = request.sampling
    fields: dict[str, Any] = {"max_tokens": None, **model.config.model.default_sampling_params}
    fields.update({name: getattr(given, name) for name in _OPTIONAL if given.HasField(name)})
    return SamplingParams(
        **fields
        | {
            "stop": list(given.stop),
            "stop_token_ids": list(given.stop_token_ids),
            "include_stop_str_in_output": given.include_stop,
            "ignore_eos": given.ignore_eos,
            "logit_bias": dict(given.logit_bias) or None,
            "logprobs": request.logprobs if request.HasField("logprobs") else None,
            "output_kind": kind,
        }
    )


async def read_prompt(request: Any, model: ServedModel, limits: ServerArgs) -> list[int]:
    """Token ids of the prompt, whatever its form. Raises InvalidRequestError."""
    form = request.WhichOneof("prompt")
    if form is None:
        raise InvalidRequestError("prompt must be one of text, token_ids and conversation", parameter="prompt")
    if form == "token_ids":
        token_ids = list(request.token_ids.ids)
    elif form == "text":
        if not request.text:
            raise InvalidRequestError("text must not be empty", parameter="text")
        token_ids = await encode_prompt(model, request.text, parameter="text")
    else:
        conversation = [{"role": each.role, "content": each.content} for each in request.conversation.messages]
        token_ids = await render_prompt(model, check_messages(conversation))
    limit = max_input_tokens(limits, model)
    if len(token_ids) > limit:
        raise InvalidRequestError(
            f"{form} must have at most {limit} tokens, got {len(token_ids)}", parameter=form, value=len(token_ids)
        )
    return token_ids


class ResponseWriter:
    """Outputs of one request as messages; understands deltas as well as whole outputs."""

    def __init__(self, tokenizer: Any, num_likeliest: int) -> None:
        self._tokenizer = tokenizer
        self._num_likeliest = num_likeliest
        self._num_output_tokens = 0

    def write(self, output: RequestOutput) -> Any:
        """One message; the last output brings the usage."""
        self._num_output_tokens += sum(len(choice.token_ids) for choice in output.outputs)
        usage = None
        if output.finished:
            usage = messages.Usage(
                prompt_tokens=len(output.prompt_token_ids),
                cached_tokens=output.num_cached_tokens or 0,
                output_tokens=self._num_output_tokens,
            )
        return messages.GenerateResponse(sequences=map(self._sequence, output.outputs), usage=usage)

    def _sequence(self, choice: CompletionOutput) -> Any:
        return messages.Sequence(
            index=choice.index,
            text=choice.text,
            token_ids=choice.token_ids,
            logprobs=self._positions(choice),
            finish_reason=messages.FINISH_REASONS.get(choice.finish_reason or "unspecified", 0),
            stop=choice.stop_reason if isinstance(choice.stop_reason, str) else "",
        )

    def _positions(self, choice: CompletionOutput) -> Iterable[Any]:
        for token_id, position in zip(choice.token_ids, choice.logprobs or []):
            likeliest = sorted(position, key=lambda each: position[each].logprob, reverse=True)
            yield messages.PositionLogprobs(
                chosen=self._token(token_id, position),
                likeliest=[self._token(each, position) for each in likeliest[: self._num_likeliest]],
            )

    def _token(self, token_id: int, position: LogprobsAtPosition) -> Any:
        text = "" if self._tokenizer is None else self._tokenizer.decode_token(token_id)
        return messages.TokenLogprob(token_id=token_id, text=text, logprob=position[token_id].logprob)
