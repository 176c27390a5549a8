"""One request to `/v1/responses` on its way: its conversation, its parameters, and the response object."""

from __future__ import annotations

from typing import Any

from quire.errors import InvalidRequestError, NotSupportedError, wrong_value
from quire.outputs import CompletionOutput, RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.generation import Generation
from quire.server.models import ServedModel
from quire.server.openai.logprobs import chat_logprobs
from quire.server.openai.params import (
    check_cache_salt,
    check_top_logprobs,
    make_sampling_params,
    not_yet,
    refuse_constraint,
)
from quire.server.openai.response_format import parse_constraint, parse_response_format
from quire.server.openai.responses.items import (
    Item,
    check_images,
    message_part,
    new_id,
    parse_input,
    to_messages,
)
from quire.server.openai.responses.schemas import ResponsesRequest
from quire.server.openai.responses.store import ResponseStore
from quire.server.openai.tools import parse_flat_tools, refuse_calls
from quire.server.openai.usage import UsageCounter
from quire.server.prompts import check_template_variables, count_tokens, make_prompt

_LOGPROBS = "message.output_text.logprobs"
_NOT_YET = ("background", "conversation", "prompt")


class ResponseJob:
    """What is asked, and what it becomes."""

    def __init__(
        self, model: ServedModel, body: ResponsesRequest, store: ResponseStore, tenant: str, created_at: int
    ) -> None:
        _check(body)
        self.id = new_id("resp")
        self.message_id = new_id("msg")
        self.body = body
        self.model = model
        self.created_at = created_at
        self.num_top = _num_logprobs(body, model.config.model.max_logprobs)
        self.input_items = parse_input(body.input)
        check_images(self.input_items, model)
        self._variables = _template_variables(body)
        self._messages = to_messages(
            store.conversation(body.previous_response_id, tenant) + self.input_items, body.instructions
        )
        self.params = self._make_params()
        self.usage = UsageCounter()
        self._store = store
        self._tenant = tenant

    def _make_params(self) -> SamplingParams:
        body = self.body
        changes: dict[str, Any] = {"logprobs": self.num_top}
        if body.max_output_tokens is not None:
            changes["max_tokens"] = body.max_output_tokens
        defaults = {"max_tokens": None, **self.model.config.model.default_sampling_params}
        return make_sampling_params(body, defaults, is_stream=bool(body.stream), **changes)

    async def count_tokens(self) -> int:
        """Tokens of the conversation."""
        return await count_tokens(self.model, self._messages, variables=self._variables)

    async def generation(self) -> Generation:
        """What the engine is asked."""
        return Generation(
            self.model,
            [await make_prompt(self.model, self._messages, variables=self._variables)],
            self.params,
            self.id,
            priority=self.body.priority or 0,
            cache_salt=self.body.cache_salt,
        )

    def whole(self, result: RequestOutput) -> dict[str, Any]:
        """The response object of a finished generation, which is stored if the request wants that."""
        self.usage.add(0, result)
        (choice,) = result.outputs
        return self.finished(choice.text, self.logprobs(choice), choice.finish_reason)

    def logprobs(self, choice: CompletionOutput) -> list[Any]:
        """One entry for each token, or none at all."""
        if self.num_top is None:
            return []
        tokenizer = self.model.engine.tokenizer
        entries: list[Any] = chat_logprobs(choice.token_ids, choice.logprobs or [], self.num_top, tokenizer)[
            "content"
        ]
        return entries

    def message(self, status: str, content: list[Any]) -> Item:
        """The one item of the output."""
        return {
            "type": "message",
            "id": self.message_id,
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def finished(self, text: str, logprobs: list[Any], finish_reason: str | None) -> dict[str, Any]:
        """See `whole`."""
        status = "incomplete" if finish_reason == "length" else "completed"
        response = self.response(status, [self.message(status, [message_part(text, logprobs)])])
        if self.body.store is not False:
            self._store.put(response, self.input_items, self._tenant)
        return response

    def response(
        self, status: str, output: list[Item], error: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The response object in any state."""
        body, is_cut = self.body, status == "incomplete"
        reasoning = body.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": self.model.name,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {
                "effort": reasoning and reasoning.effort,
                "summary": reasoning and reasoning.summary,
            },
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": self.params.temperature,
            "text": {"format": {"type": "text"}, "verbosity": body.text and body.text.verbosity},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self.params.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "user": body.user,
        }

    def _usage(self) -> dict[str, Any]:
        counted = self.usage.as_dict()
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted["total_tokens"],
        }


def _check(body: ResponsesRequest) -> None:
    """Rules that need no engine; raises InvalidRequestError that names the parameter."""
    for name in _NOT_YET:
        if getattr(body, name):
            raise not_yet(name)
    refuse_calls(parse_flat_tools(body.tools, body.tool_choice, body.parallel_tool_calls))
    if body.text is not None and body.text.format is not None:
        refuse_constraint(parse_response_format(body.text.format, "text.format"))
    refuse_constraint(parse_constraint(body))
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise wrong_value("max_output_tokens", "an integer of at least 1", body.max_output_tokens)
    if body.truncation not in (None, "disabled"):
        raise NotSupportedError(
            "truncation other than disabled is not supported yet: shorten the input", parameter="truncation"
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options needs stream=true", parameter="stream_options")
    check_cache_salt(body.cache_salt)


def _num_logprobs(body: ResponsesRequest, limit: int) -> int | None:
    check_top_logprobs(body.top_logprobs, limit)
    return (body.top_logprobs or 0) if body.top_logprobs or _LOGPROBS in (body.include or []) else None


def _template_variables(body: ResponsesRequest) -> dict[str, Any]:
    variables = check_template_variables(body.chat_template_kwargs)
    if body.reasoning is not None and body.reasoning.effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning.effort)
    return variables
