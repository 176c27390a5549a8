"""Bodies of the requests as Anthropic's clients send them: content blocks, tools, options. `cache_control` and all that
is not named here is ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from quire.server.fields import Int64

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class TextBlock(Struct, tag_field="type", tag="text"):
    """Text of either side."""

    text: str


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """What the model thought before it answered."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Struct, tag_field="type", tag="redacted_thinking"):
    """Thoughts that only Anthropic's own models can read; passed over."""

    data: str


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A call that the model made."""

    id: str
    name: ToolName
    input: dict[str, Any]


class Base64Source(Struct, tag_field="type", tag="base64"):
    """Bytes in the request itself."""

    media_type: str
    data: str


class UrlSource(Struct, tag_field="type", tag="url"):
    """Bytes behind an address."""

    url: str


class FileSource(Struct, tag_field="type", tag="file"):
    """Bytes uploaded before."""

    file_id: str


class TextSource(Struct, tag_field="type", tag="text"):
    """A document that is plain text."""

    data: str
    media_type: str | None = None


class ImageBlock(Struct, tag_field="type", tag="image"):
    """A picture."""

    source: Base64Source | UrlSource | FileSource


class DocumentBlock(Struct, tag_field="type", tag="document"):
    """A document."""

    source: Base64Source | UrlSource | FileSource | TextSource


class ToolResultBlock(Struct, tag_field="type", tag="tool_result"):
    """What a call of the model gave."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock] | None = None
    is_error: bool | None = None


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
)


class Message(Struct):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct, kw_only=True):
    """What the model may call. Anthropic's own tools have a `type` and no schema."""

    name: ToolName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class AutoChoice(Struct, tag_field="type", tag="auto"):
    """The model decides whether it calls a tool."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(Struct, tag_field="type", tag="any"):
    """The model must call some tool."""

    disable_parallel_tool_use: bool | None = None


class NamedChoice(Struct, tag_field="type", tag="tool"):
    """The model must call this tool."""

    name: ToolName
    disable_parallel_tool_use: bool | None = None


class NoChoice(Struct, tag_field="type", tag="none"):
    """The model must not call a tool."""


class ThinkingEnabled(Struct, tag_field="type", tag="enabled"):
    """The model thinks first."""

    budget_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class ThinkingAdaptive(Struct, tag_field="type", tag="adaptive"):
    """The model thinks first if it finds that useful."""


class ThinkingDisabled(Struct, tag_field="type", tag="disabled"):
    """The model answers at once."""


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema"):
    """The answer is JSON by this schema."""

    schema: dict[str, Any]


class OutputConfig(Struct):
    """How the answer should be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonSchemaFormat | None = None


class CountTokensRequest(Struct, kw_only=True):
    """`POST /v1/messages/count_tokens`: all that makes the prompt."""

    model: str | None = None
    messages: list[Message] | None = None
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    output_format: JsonSchemaFormat | None = None
    """An earlier place of `output_config.format`."""
    # Accepted without effect.
    cache_control: Any = None
    context_management: Any = None
    container: Any = None
    mcp_servers: Any = None
    metadata: Any = None
    service_tier: Any = None
    inference_geo: Any = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """`POST /v1/messages`."""

    max_tokens: Int64 | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
