"""What a chat template expects of messages, found by reading its syntax tree and by rendering a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment


class NullContent(Enum):
    """How a template wants an assistant message that has tool calls and no content."""

    ABSENT = "absent"
    EMPTY = "empty"
    NONE = "none"

    def put(self, message: dict[str, Any]) -> None:
        """Give the message its missing content, in place."""
        if self is not NullContent.ABSENT:
            message["content"] = None if self is NullContent.NONE else ""


@dataclass(frozen=True)
class TemplateTraits:
    """What a template expects."""

    knows_developer: bool
    """The role `developer` has a meaning of its own; elsewhere it is what `system` is."""
    takes_parts: bool
    """Content may be a list of parts."""
    needs_parts: bool
    """Content must be a list of parts: a plain string would be looped over by character."""
    takes_argument_text: bool = False
    """Tool call arguments must stay JSON text instead of an object."""
    null_content: NullContent = NullContent.ABSENT


def find_traits(environment: SandboxedEnvironment, source: str, render: Callable[..., str]) -> TemplateTraits:
    """Traits of a template. `render(messages=..., tools=...)` renders it."""
    tree = environment.parse(source)
    takes_parts = _loops_over_content(tree)
    needs_parts = takes_parts and not any(
        test.name in ("string", "iterable") for test in tree.find_all(nodes.Test)
    )
    return TemplateTraits("developer" in source, takes_parts, needs_parts, *_probe_tool_calls(render))


def _names_in(target: nodes.Node) -> Iterator[str]:
    if isinstance(target, nodes.Name):
        yield target.name
    for name in target.find_all(nodes.Name):
        yield name.name


def _base(node: nodes.Node) -> nodes.Node:
    """The value under filters, slices and fallbacks: `x[1:] | list` and `x or []` are x."""
    while True:
        inner = _inner(node)
        if inner is None:
            return node
        node = inner


def _inner(node: nodes.Node) -> nodes.Node | None:
    if isinstance(node, nodes.Getitem):
        return node.node if isinstance(node.arg, nodes.Slice) else None
    if isinstance(node, nodes.Filter):
        return node.node
    if isinstance(node, nodes.Or):
        return node.left
    return node.expr1 if isinstance(node, nodes.CondExpr) else None


def _is_content_key(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and node.value == "content"


def _owner_of_content(node: nodes.Node) -> nodes.Node | None:
    """x of `x.content`, `x['content']` and `x.get('content')`, else None."""
    if isinstance(node, nodes.Getattr):
        return node.node if node.attr == "content" else None
    if isinstance(node, nodes.Getitem):
        return node.node if _is_content_key(node.arg) else None
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get":
        return node.node.node if node.args and _is_content_key(node.args[0]) else None
    return None


class _Aliases:
    """Names that hold the list of messages, one message, or the content of one."""

    def __init__(self) -> None:
        self.lists = {"messages"}
        self.messages: set[str] = set()
        self.contents: set[str] = set()

    def learn(self, name: str, value: nodes.Node) -> bool:
        """Note what `name` holds after `name = value`; True when that is news."""
        for names, holds in (
            (self.lists, self.is_list),
            (self.messages, self.is_message),
            (self.contents, self.is_content),
        ):
            if holds(value) and name not in names:
                names.add(name)
                return True
        return False

    def learn_loop(self, target: nodes.Node, iterable: nodes.Node) -> bool:
        """Note what the names of a loop hold; True when that is news."""
        fresh = set(_names_in(target)) - self.messages if self.is_list(iterable) else set()
        self.messages |= fresh
        return bool(fresh)

    def is_list(self, node: nodes.Node) -> bool:
        base = _base(node)
        if isinstance(base, nodes.Getattr):  # namespace(messages=...)
            return base.attr in self.lists
        return isinstance(base, nodes.Name) and base.name in self.lists

    def is_message(self, node: nodes.Node) -> bool:
        base = _base(node)
        if isinstance(base, nodes.Getitem):
            return self.is_list(base.node)
        return isinstance(base, nodes.Name) and base.name in self.messages

    def is_content(self, node: nodes.Node) -> bool:
        base = _base(node)
        if isinstance(base, nodes.Name):
            return base.name in self.contents
        owner = _owner_of_content(base)
        return owner is not None and self.is_message(owner)


def _bindings(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    """(name, value) of every assignment, and of every macro parameter with each argument it is called
    with.
    """
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name):
            yield assign.target.name, assign.node
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
        if macro is not None:
            yield from ((param.name, value) for param, value in zip(macro.args, call.args, strict=False))


def _loops_over_content(tree: nodes.Template) -> bool:
    """Does any loop run over the content of a message? Names are followed until nothing new is learnt."""
    aliases = _Aliases()
    bindings = list(_bindings(tree))
    loops = list(tree.find_all(nodes.For))
    is_learning = True
    while is_learning:
        news = [aliases.learn(name, value) for name, value in bindings]
        news += [aliases.learn_loop(loop.target, loop.iter) for loop in loops]
        is_learning = any(news)
    return any(aliases.is_content(loop.iter) for loop in loops)


_PROBE_KEY = "quire_probe"
_PROBE_TEXT = f'{{"{_PROBE_KEY}": "x"}}'
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}},
    },
}


def _render_probe(render: Callable[..., str], null_content: NullContent, as_text: bool) -> str | None:
    """The template's text for a conversation with one tool call, None if it refuses."""
    arguments = _PROBE_TEXT if as_text else {_PROBE_KEY: "x"}
    call = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    reply: dict[str, Any] = {"role": "assistant", "tool_calls": [call]}
    null_content.put(reply)
    result = {"role": "tool", "tool_call_id": "call00001", "name": "probe", "content": "x"}
    answer = {"role": "assistant", "content": "x"}
    question = {"role": "user", "content": "x"}
    try:
        return render(messages=[question, reply, result, answer, question], tools=[_PROBE_TOOL])
    except Exception:  # a template is a foreign program; whatever it raises means that it refuses
        return None


def _probe_tool_calls(render: Callable[..., str]) -> tuple[bool, NullContent]:
    """(takes_argument_text, null_content): the first way that shows the call as JSON, else the first that renders.

    An object that a template does not serialise comes out as Python's repr, with single quotes.
    """
    ways = [(as_text, null_content) for null_content in NullContent for as_text in (False, True)]
    rendered = [(way, _render_probe(render, way[1], way[0])) for way in ways]
    accepted = [(way, text) for way, text in rendered if text is not None]
    for way, text in accepted:
        if _PROBE_TEXT in text if way[0] else _PROBE_KEY in text and f"'{_PROBE_KEY}'" not in text:
            return way
    return accepted[0][0] if accepted else ways[0]
