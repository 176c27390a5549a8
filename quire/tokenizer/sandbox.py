"""The Jinja environment of chat templates: sandboxed, immutable, and bounded in work, memory and time.

Templates come with models and are programs. Loops and calls spend a budget per rendering; operations that can
make a
value much larger than their inputs are checked before they run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000
"""Loop iterations and calls in one rendering."""
MAX_SECONDS = 10.0
"""Processor time of one rendering from its 32nd step on, looked at every 32 steps: most take fewer and need no clock."""
MAX_PROBE_STEPS = 20_000
"""`MAX_STEPS` of the short conversations that show what a template expects."""
MAX_OUTPUT_CHARS = 64 * 1024 * 1024
"""Characters of the result."""
MAX_LENGTH = 16 * 1024 * 1024
"""Characters of any value on the way; a list counts 16 for each item."""
MAX_PROBE_LENGTH = 256 * 1024
"""`MAX_LENGTH` of probes."""
MAX_WIDTH = 100_000
"""Largest padding, indentation or repetition that a filter or method may be asked for."""
_MAX_INT_BITS = 4096
_ITEM_SIZE = 16
# A width of six digits or more, or one computed from an argument, in `%` and in `str.format` patterns.
_WIDE_FORMAT = re.compile(r"%[-+ #0]*([0-9]{6,}|\*)|\{[^{}]*:[^{}]*([0-9]{6,}|\{)")
_SIZE_FILTERS = ("batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap")
_SIZE_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})


class _Budget:
    """What one rendering has spent."""

    def __init__(self, is_probe: bool) -> None:
        self.num_steps = 0
        self.max_steps = MAX_PROBE_STEPS if is_probe else MAX_STEPS
        self.max_length = MAX_PROBE_LENGTH if is_probe else MAX_LENGTH
        self.deadline: float | None = None

    def spend(self) -> None:
        self.num_steps += 1
        if self.num_steps > self.max_steps:
            raise SecurityError(f"chat template takes more than {self.max_steps} loop iterations and calls")
        if self.num_steps % 32 == 0:
            self._check_time(time.thread_time())

    def _check_time(self, now: float) -> None:
        if self.deadline is None:
            self.deadline = now + MAX_SECONDS
        elif now > self.deadline:
            raise SecurityError(f"chat template takes longer than {MAX_SECONDS:g} s")


_budget: ContextVar[_Budget | None] = ContextVar("quire_template_budget", default=None)


def _spend() -> None:
    budget = _budget.get()
    if budget is not None:
        budget.spend()


def _check_length(length: int) -> None:
    if length <= MAX_PROBE_LENGTH:  # within every limit, as nearly all are
        return
    budget = _budget.get()
    limit = budget.max_length if budget else MAX_LENGTH
    if length > limit:
        raise SecurityError(f"chat template makes a value of more than {limit} characters")


def _check_width(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and value > MAX_WIDTH for value in values):
        raise SecurityError(f"chat template asks for a width of more than {MAX_WIDTH}")


def _check_format(pattern: Any) -> None:
    if isinstance(pattern, str) and _WIDE_FORMAT.search(pattern):
        raise SecurityError(f"chat template asks for a width of more than {MAX_WIDTH}, or a computed one")


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return _ITEM_SIZE * len(value) if isinstance(value, (list, tuple, dict)) else 0


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(right, int):
        _check_length(_length(left) * right)
    elif isinstance(left, int):
        _check_length(_length(right) * left)


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))


def _check_bits(num_bits: int) -> None:
    if num_bits > _MAX_INT_BITS:
        raise SecurityError(f"chat template computes an integer of more than {_MAX_INT_BITS} bits")


def _check_sum(left: Any, right: Any) -> None:
    _check_length(_length(left) + _length(right))


def _check_modulo(left: Any, right: Any) -> None:
    _check_format(left)


_BINOP_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_sum,
    "*": _check_product,
    "**": _check_power,
    "%": _check_modulo,
}


def _check_replace(text: str, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _check_length(len(text) + text.count(old) * len(new))


def _check_join(separator: str, items: Any = (), *_: Any) -> None:
    if hasattr(items, "__len__"):
        _check_length(len(separator) * len(items) + sum(map(_length, items)))


def _check_str_method(text: str, name: str, args: tuple[Any, ...]) -> None:
    if name in _SIZE_METHODS:
        _check_width(args)
    elif name == "replace":
        _check_replace(text, *args)
    elif name == "join":
        _check_join(text, *args)
    elif name in ("format", "format_map"):
        _check_format(text)


def _sized_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose integer arguments decide how large its result is."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_width((*args[1:], *kwargs.values()))
        return function(*args, **kwargs)

    return checked


def _checked_filter(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A filter that is checked on its text; the evaluation context that Jinja passes first is left out."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        has_context = hasattr(function, "jinja_pass_arg")
        check(*args[has_context:], **kwargs)
        return function(*args, **kwargs)

    return checked


def _check_replace_filter(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    _check_replace(str(text), old, new)


def _checked_join(function: Callable[..., Any]) -> Callable[..., Any]:
    """The join filter; what it joins becomes a list, so that its size is known before."""

    @wraps(function)
    def checked(context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        items = list(value)
        _check_join(str(d), items)
        return function(context, items, d, attribute)

    return checked


def _check_format_filter(pattern: Any, *_: Any, **__: Any) -> None:
    _check_format(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as chat templates expect it: no HTML escaping, and json.dumps' options."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: Any) -> None:
    raise TemplateRuntimeError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is only
    its body.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(lineno)


def _spend_step() -> nodes.EnvironmentAttribute:
    """An expression that is true, and spends a step of the budget when it is evaluated."""
    return nodes.EnvironmentAttribute("spend_step")


class _GuardedCodeGenerator(CodeGenerator):
    """Compiles loops so that every iteration and every test of one spends budget, and `~` so that its
    result is checked.
    """

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, nodes.ExprStmt(_spend_step()).set_lineno(node.lineno))
        if node.test is not None:
            node.test = nodes.And(_spend_step(), node.test).set_lineno(node.lineno)
        super().visit_For(node, frame)

    def visit_EnvironmentAttribute(self, node: nodes.EnvironmentAttribute, frame: Frame) -> None:
        """`spend_step`, the only one, called as it is: the sandbox's rules for calls are for what a template names."""
        super().visit_EnvironmentAttribute(node, frame)
        self.write("()")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.check_result(")
        super().visit_Concat(node, frame)
        self.write(")")


class ChatTemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates; `render` runs one under a budget of its own."""

    code_generator_class = _GuardedCodeGenerator
    intercepted_binops = frozenset(_BINOP_CHECKS)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.globals.pop("lipsum")
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters |= {"tojson": _to_json}
        self.filters |= {name: _sized_filter(self.filters[name]) for name in _SIZE_FILTERS}
        self.filters["join"] = _checked_join(self.filters["join"])
        checks: dict[str, Callable[..., None]] = {
            "replace": _check_replace_filter,
            "format": _check_format_filter,
        }
        self.filters |= {name: _checked_filter(self.filters[name], check) for name, check in checks.items()}

    @staticmethod
    def spend_step() -> bool:
        """Called by compiled templates in every loop iteration."""
        _spend()
        return True

    @staticmethod
    def check_result(text: str) -> str:
        """Called by compiled templates with every concatenation."""
        _check_length(len(text))
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make large values: check, then compute."""
        _BINOP_CHECKS[operator](left, right)
        return self.binop_table[operator](left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Any call: spend budget, check string methods, then call."""
        _spend()
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_str_method(owner, method.__name__, args)
        return super().call(context, obj, *args, **kwargs)

    def render(self, template: Template, variables: Mapping[str, Any], *, is_probe: bool = False) -> str:
        """The template's output; SecurityError when it exceeds a limit of this module."""
        token = _budget.set(_Budget(is_probe))
        try:
            return "".join(_limited(template.root_render_func(template.new_context(dict(variables)))))
        finally:
            _budget.reset(token)


def _limited(chunks: Iterable[str]) -> Iterator[str]:
    length = 0
    for chunk in chunks:
        length += len(chunk)
        if length > MAX_OUTPUT_CHARS:
            raise SecurityError(f"chat template writes more than {MAX_OUTPUT_CHARS} characters")
        yield chunk
