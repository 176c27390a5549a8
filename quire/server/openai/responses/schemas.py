"""Body of `POST /v1/responses` as clients send it. Every field may be null, which means: not given."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from quire.server.fields import Int64
from quire.server.openai.schemas import SamplingFields, StreamOptions


class TextConfig(Struct, kw_only=True):
    """What the text of the answer should be like."""

    format: dict[str, Any] | None = None
    """As `response_format` of chat completions, but the schema stands flat beside its name."""
    verbosity: str | None = None


class Reasoning(Struct, kw_only=True):
    """How much a model should think."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(SamplingFields, kw_only=True):
    """`POST /v1/responses`."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    """A system message for this response alone: the next one of a conversation does not inherit it."""
    previous_response_id: str | None = None
    max_output_tokens: Int64 | None = None
    top_logprobs: Int64 | None = None
    include: list[str] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Int64 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: Int64 | None = None
    cache_salt: str | None = None
    # Known, and refused until they exist.
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    truncation: str | None = None
