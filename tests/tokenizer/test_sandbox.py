"""Templates cannot reach Python, and cannot take the server's time or memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from quire.errors import InvalidRequestError
from quire.tokenizer import render_chat, sandbox
from quire.tokenizer.chat_template import MAX_TEMPLATE_CHARS
from tests.tokenizer.conversations import user

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ ''.format.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum() }}",
    "{% include 'secret' %}",
    "{{ cycler.__init__.__globals__ }}",
]

TOO_MUCH = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in [1] recursive %}{{ loop([1, 1]) }}{{ loop([1, 1]) }}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 9 ** 99999 }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set x = 'a' * 10**5 %}{{ x.replace('a', x) }}",
    "{% set x = 'a' * 10**5 %}{{ x | replace('a', x) }}",
    "{% set x = 'a' * 10**5 %}{{ x.join(range(90000) | list) }}",
    "{% set x = 'a' * 10**5 %}{{ range(90000) | list | join(x) }}",
    "{% set x = 'a' * 10**5 %}{{ range(90000) | join(x) }}",
    "{% set x = 'a' * 10**5 %}{% for i in range(100) %}{{ x }}{% endfor %}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '{:>10000000000}'.format('a') }}",
    "{{ '{:>{}}'.format('a', 10**10) }}",
    "{{ [1] | tojson(indent=10**10) }}",
    "{{ 'a\nb' | indent(10**10) }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_templates_cannot_reach_python(source: str) -> None:
    try:
        rendered = render_chat(source, [user("a")])
    except InvalidRequestError:
        return
    assert rendered == ""


@pytest.mark.parametrize("source", TOO_MUCH)
def test_templates_cannot_take_time_or_memory(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_STEPS", 20_000)
    monkeypatch.setattr(sandbox, "MAX_PROBE_STEPS", 1000)
    monkeypatch.setattr(sandbox, "MAX_LENGTH", 10**6)
    monkeypatch.setattr(sandbox, "MAX_OUTPUT_CHARS", 10**6)
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match="chat template"):
            render_chat(source, [user("a")])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * sandbox.MAX_LENGTH


def test_the_budget_is_one_renderings_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_STEPS", 10_000)
    source = "{% for i in range(1000) %}{% for j in range(1) %}{% endfor %}{% endfor %}ok"
    assert [render_chat(source, [user("a")]) for _ in range(4)] == ["ok"] * 4


def test_a_slow_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.0)
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    with pytest.raises(InvalidRequestError, match="takes longer than 0 s"):
        render_chat("{% for i in range(1000) %}{% endfor %}", [user("a")])


def test_template_size_is_limited() -> None:
    with pytest.raises(InvalidRequestError, match="must have at most"):
        render_chat("a" * (MAX_TEMPLATE_CHARS + 1), [user("a")])
    with pytest.raises(InvalidRequestError):
        render_chat("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", [user("a")])


def test_large_conversations_are_well_within_the_limits() -> None:
    source = "{% for m in messages %}{{ '<' + m.role + '>' ~ m.content | trim }}{% endfor %}"
    text = render_chat(source, [user("x" * 1000)] * 10_000)
    assert len(text) == 10_000 * 1006
