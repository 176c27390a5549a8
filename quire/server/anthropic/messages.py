"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError, NotSupportedError
from quire.outputs import CompletionOutput, RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.server.anthropic.conversation import Conversation, read_conversation
from quire.server.anthropic.errors import anthropic_error
from quire.server.anthropic.schemas import CountTokensRequest, MessagesRequest, NamedChoice, NoChoice
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport, encode_json
from quire.server.generation import Generation, collect, stream
from quire.server.merge import Batch
from quire.server.models import ServedModel
from quire.server.replies import json_response, request_id_of
from quire.server.sampling import sampling_params


async def create_message(context: ServerContext, request: Request) -> Response:
    """Answer one request, whole or as a stream of named events."""
    body = await read_body(request, MessagesRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    params = make_sampling_params(body, model)
    conversation = _checked_conversation(body)
    identity = request_id_of(request)
    job = _Job(f"msg_{identity}", model)
    generation = Generation(model, [await conversation.render(model)], params, job.id)
    if body.stream:
        response: Response = await stream(context, request, generation, _EventRenderer(job))
    else:
        (result,) = await collect(context, request, generation)
        response = json_response(job.whole(result))
    response.headers["request-id"] = f"req_{identity}"
    return response


async def count_tokens(context: ServerContext, request: Request) -> Response:
    """How many tokens the same request to `/v1/messages` would read."""
    body = await read_body(request, CountTokensRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    return json_response({"input_tokens": await _checked_conversation(body).count_tokens(model)})


def _checked_conversation(body: CountTokensRequest) -> Conversation:
    _check_tools(body)
    if body.output_format is not None or (
        body.output_config is not None and body.output_config.format is not None
    ):
        name = "output_config.format" if body.output_format is None else "output_format"
        raise NotSupportedError(f"{name} is not supported yet", parameter=name)
    return read_conversation(body)


def _check_tools(body: CountTokensRequest) -> None:
    """Tools must be right before they are refused, so that a client's mistakes show first."""
    for index, tool in enumerate(body.tools or ()):
        if tool.type in (None, "custom") and (tool.input_schema or {}).get("type") != "object":
            where = f"tools[{index}].input_schema"
            raise InvalidRequestError(f'{where} must be a JSON schema with "type": "object"', parameter=where)
    choice, names = body.tool_choice, [tool.name for tool in body.tools or ()]
    if isinstance(choice, NamedChoice) and choice.name not in names:
        raise InvalidRequestError(
            f"tool_choice.name must be the name of one of the tools, got {choice.name!r}",
            parameter="tool_choice",
        )
    if body.tools and not isinstance(choice, NoChoice):
        raise NotSupportedError("tools is not supported yet", parameter="tools")


def make_sampling_params(body: MessagesRequest, model: ServedModel) -> SamplingParams:
    """Defaults of the model, then what the request gives. Raises InvalidRequestError."""
    if body.max_tokens is None:
        raise InvalidRequestError(
            "max_tokens must be given: an integer of at least 1", parameter="max_tokens"
        )
    given = {name: getattr(body, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
    fields = {
        **model.config.model.default_sampling_params,
        **{name: value for name, value in given.items() if value is not None},
        "stop": body.stop_sequences or [],
        "output_kind": RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY,
    }
    return sampling_params(fields, {"stop": "stop_sequences"})


class _Job:
    """One request on its way: how its output becomes a message."""

    def __init__(self, message_id: str, model: ServedModel) -> None:
        self.id = message_id
        self.model = model

    def whole(self, output: RequestOutput) -> dict[str, Any]:
        """The response body, once the output is finished."""
        (choice,) = output.outputs
        return {
            **self.empty(output),
            "content": [{"type": "text", "text": choice.text}],
            **ending(choice),
            "usage": usage(output, len(choice.token_ids)),
        }

    def empty(self, output: RequestOutput) -> dict[str, Any]:
        """A message before its content."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(output, 0),
        }


def ending(choice: CompletionOutput) -> dict[str, Any]:
    """Why a message ended, in Anthropic's words."""
    if choice.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if isinstance(choice.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_reason}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def usage(output: RequestOutput, num_output_tokens: int) -> dict[str, Any]:
    """`input_tokens` is the whole prompt, as in a request without `cache_control`, so it equals `count_tokens`."""
    return {
        "input_tokens": len(output.prompt_token_ids),
        "output_tokens": num_output_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


class _EventRenderer:
    """The events of a streamed message with one block of text."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._num_tokens = 0
        self._is_first = True

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        frames = []
        for _, output in batch:
            if self._is_first:
                frames += self._beginning(output)
                self._is_first = False
            for choice in output.outputs:
                frames += self._progress(output, choice)
        return b"".join(frames)

    def end(self) -> bytes:
        """See `Renderer.end`."""
        return _event("message_stop")

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        return _event("error", error=anthropic_error(report)[1]["error"])

    def _beginning(self, output: RequestOutput) -> list[bytes]:
        return [
            _event("message_start", message=self._job.empty(output)),
            _event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            _event("ping"),
        ]

    def _progress(self, output: RequestOutput, choice: CompletionOutput) -> list[bytes]:
        frames = []
        self._num_tokens += len(choice.token_ids)
        if choice.text:
            delta = {"type": "text_delta", "text": choice.text}
            frames.append(_event("content_block_delta", index=0, delta=delta))
        if choice.finish_reason is not None:
            frames.append(_event("content_block_stop", index=0))
            frames.append(
                _event("message_delta", delta=ending(choice), usage=usage(output, self._num_tokens))
            )
        return frames


def _event(kind: str, **fields: Any) -> bytes:
    """Clients drop events without a name, and want it in the data as well."""
    return b"event: " + kind.encode() + b"\ndata: " + encode_json({"type": kind, **fields}) + b"\n\n"
