"""From Anthropic's turns of content blocks to the messages that chat templates know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from quire.errors import InvalidRequestError, NotSupportedError, describe
from quire.server.anthropic.schemas import (
    Block,
    CountTokensRequest,
    DocumentBlock,
    FileSource,
    ImageBlock,
    Message,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ThinkingDisabled,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
)
from quire.server.models import Prompt, ServedModel
from quire.server.prompts import check_messages, count_tokens, make_prompt

Part = dict[str, Any]
"""A part of a message's content, as the chat API has it."""
_EFFORTS = {"xhigh": "high", "max": "high"}
"""Those that templates do not know."""
_USER_ONLY = (ToolResultBlock, ImageBlock, DocumentBlock)
_ASSISTANT_ONLY = (ToolUseBlock, ThinkingBlock, RedactedThinkingBlock)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked request as its chat template sees it."""

    messages: list[dict[str, Any]]
    is_continued: bool
    """Whether the last message is the beginning of the answer."""
    variables: dict[str, Any]

    async def render(self, model: ServedModel) -> Prompt:
        """The prompt, its images read. Raises InvalidRequestError for what the template refuses."""
        return await make_prompt(
            model,
            self.messages,
            continue_final_message=self.is_continued,
            variables=self.variables,
        )

    async def count_tokens(self, model: ServedModel) -> int:
        """Tokens of that prompt. Raises the same."""
        return await count_tokens(
            model,
            self.messages,
            continue_final_message=self.is_continued,
            variables=self.variables,
        )


def read_conversation(body: CountTokensRequest) -> Conversation:
    """Turns as messages; turns of one side that follow each other become one. Raises InvalidRequestError."""
    if not body.messages:
        raise InvalidRequestError("messages must be a non-empty list", parameter="messages")
    builder = _Builder()
    if body.system:
        builder.add("system", _text_parts(body.system))
    for index, message in enumerate(body.messages):
        builder.add_turn(message, f"messages[{index}]")
    is_continued = builder.finish()
    check_messages(builder.messages)
    return Conversation(builder.messages, is_continued, _template_variables(body))


def _template_variables(body: CountTokensRequest) -> dict[str, Any]:
    """Thinking is off unless asked for, and effort goes to templates that know it."""
    thinks = body.thinking is not None and not isinstance(body.thinking, ThinkingDisabled)
    variables: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks}
    effort = None if body.output_config is None else body.output_config.effort
    if effort is not None:
        variables["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return variables


class _Builder:
    """Collects messages in the order of the turns."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._tool_names: dict[str, str] = {}

    def add_turn(self, message: Message, where: str) -> None:
        """One turn: each tool result is a message of its own, the rest is one."""
        if isinstance(message.content, str):
            self.add(message.role, _text_parts(message.content))
            return
        parts: list[Part] = []
        for index, block in enumerate(message.content):
            place = f"{where}.content[{index}]"
            _check_side(block, message.role, place)
            if isinstance(block, TextBlock):
                parts += _text_parts(block.text)
            elif isinstance(block, ImageBlock):
                parts.append(_image_part(block, place))
            elif isinstance(block, ToolResultBlock):
                self.add(message.role, parts)
                parts = []
                self._add_result(block, place)
            elif isinstance(block, ToolUseBlock):
                self._tool_names[block.id] = block.name
        self.add(message.role, parts, **_assistant_fields(message.content))

    def add(self, role: str, parts: list[Part], **fields: Any) -> None:
        """A message, or more of the one before if that has the same role; nothing for no content at all."""
        if not parts and not fields:
            return
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != role:
            last = {"role": role, "content": []}
            self.messages.append(last)
        last["content"] += parts
        for name, value in fields.items():
            last[name] = last[name] + value if name in last else value

    def _add_result(self, block: ToolResultBlock, where: str) -> None:
        name = self._tool_names.get(block.tool_use_id)
        if name is None:
            raise InvalidRequestError(
                f"{where}.tool_use_id must be the id of a tool_use block before it, got {describe(block.tool_use_id)}",
                parameter=f"{where}.tool_use_id",
            )
        for index, part in enumerate(block.content if isinstance(block.content, list) else ()):
            if not isinstance(part, TextBlock):
                raise _not_yet(part, f"{where}.content[{index}]")
        self.messages.append(
            {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "name": name,
                "content": "\n".join(_texts(block.content or "")),
            }
        )

    def finish(self) -> bool:
        """Put single texts in place of lists of one; returns whether the last message is to be continued."""
        for message in self.messages:
            parts = message["content"]
            if isinstance(parts, list) and all(part["type"] == "text" for part in parts) and len(parts) <= 1:
                message["content"] = parts[0]["text"] if parts else None
        if not self.messages:
            raise InvalidRequestError("messages must have content, got none", parameter="messages")
        last = self.messages[-1]
        if last["role"] != "assistant":
            return False
        if last.get("tool_calls"):
            raise InvalidRequestError(
                "messages must not end with a tool_use block: its tool_result must follow",
                parameter="messages",
            )
        return last["content"] is not None


def _texts(content: str | list[Any]) -> list[str]:
    return [content] if isinstance(content, str) else [block.text for block in content]


def _text_parts(content: str | list[Any]) -> list[Part]:
    return [{"type": "text", "text": text} for text in _texts(content) if text]


def _image_part(block: ImageBlock, where: str) -> Part:
    source = block.source
    if isinstance(source, FileSource):
        raise NotSupportedError(f"{where}.source of type 'file' is not supported yet", parameter=f"{where}.source")
    url = source.url if isinstance(source, UrlSource) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _assistant_fields(blocks: list[Block]) -> dict[str, Any]:
    """Calls and thoughts of a turn, as templates read them."""
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    thoughts = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    fields = {"tool_calls": calls, "reasoning_content": thoughts}
    return {name: value for name, value in fields.items() if value}


def _check_side(block: Block, role: str, where: str) -> None:
    """Each side has its own kinds of blocks; text is everyone's."""
    if isinstance(block, _USER_ONLY) and role != "user":
        raise _wrong_side(block, where, "user")
    if isinstance(block, _ASSISTANT_ONLY) and role != "assistant":
        raise _wrong_side(block, where, "assistant")
    if isinstance(block, DocumentBlock):
        raise _not_yet(block, where)


def _wrong_side(block: Block, where: str, role: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where}: blocks of type {_kind(block)!r} may only be in {role} messages", parameter=where
    )


def _not_yet(block: Any, where: str) -> NotSupportedError:
    return NotSupportedError(
        f"{where}: blocks of type {_kind(block)!r} are not supported yet", parameter=where
    )


def _kind(block: Any) -> str:
    return str(type(block).__struct_config__.tag)
