"""What a chat template expects of messages, found by reading its syntax tree and by rendering a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import SandboxedEnvironment


@dataclass(frozen=True)
class TemplateTraits:
    """`takes_parts`: content may be a list of parts. `needs_parts`: a plain string would be looped over by
    character. `takes_argument_text`: tool call arguments must stay JSON text instead of an object."""

    takes_parts: bool
    needs_parts: bool
    takes_argument_text: bool


def find_traits(environment: SandboxedEnvironment, source: str, render: Callable[..., str]) -> TemplateTraits:
    """Traits of a template. `render(messages=..., tools=...)` renders it."""
    tree = environment.parse(source)
    takes_parts = _loops_over_content(tree)
    needs_parts = takes_parts and not any(test.name in ("string", "iterable") for test in tree.find_all(nodes.Test))
    return TemplateTraits(takes_parts, needs_parts, _takes_argument_text(render))


def _names_in(target: nodes.Node) -> Iterator[str]:
    if isinstance(target, nodes.Name):
        yield target.name
    for name in target.find_all(nodes.Name):
        yield name.name


def _base(node: nodes.Node) -> nodes.Node:
    """The value under filters, slices and fallbacks: `x[1:] | list` and `x or []` are x."""
    while True:
        is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        if is_slice or (isinstance(node, nodes.Filter) and node.node is not None):
            node = node.node
        elif isinstance(node, nodes.Or):
            node = node.left
        elif isinstance(node, nodes.CondExpr):
            node = node.expr1
        else:
            return node


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
        if isinstance(base, nodes.Getattr):
            return base.attr == "content" and self.is_message(base.node)
        if isinstance(base, nodes.Getitem):
            is_key = isinstance(base.arg, nodes.Const) and base.arg.value == "content"
            return is_key and self.is_message(base.node)
        return isinstance(base, nodes.Name) and base.name in self.contents


def _bindings(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    """(name, value) of every assignment, and of every macro parameter with each argument it is called with."""
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
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}},
    },
}


def _probe(render: Callable[..., str], arguments: object) -> str:
    """The template's text for a conversation with one tool call, empty if it refuses."""
    function = {"name": "probe", "arguments": arguments}
    call = {"id": "call00001", "type": "function", "function": function}
    messages = [{"role": "user", "content": "probe"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        return render(messages=messages, tools=[_PROBE_TOOL])
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return ""


def _takes_argument_text(render: Callable[..., str]) -> bool:
    """True when an object comes out as Python's repr (or fails) while JSON text comes out as it is."""
    from_object = _probe(render, {_PROBE_KEY: "x"})
    if _PROBE_KEY in from_object and f"'{_PROBE_KEY}'" not in from_object:
        return False
    return f'{{"{_PROBE_KEY}": "x"}}' in _probe(render, f'{{"{_PROBE_KEY}": "x"}}')
