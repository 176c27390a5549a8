"""Log lines: as text one line whatever is in them, as JSON one object; request ids, tracebacks, what other processes inherit."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quire import envs, log

NASTY = "a\nI 12:00:00 quire.server: forged\r\x1b[31m\x00\u2028\udc80 é 日本"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the handler writes; its form and level are put back afterwards."""
    monkeypatch.setenv(envs.LOG_FORMAT.name, "text")
    monkeypatch.setenv(envs.LOG_LEVEL.name, "INFO")
    handler, logger = log._handler(), logging.getLogger("quire")
    before, level, text = handler.stream, logger.level, io.StringIO()
    logger.setLevel(logging.INFO)
    monkeypatch.setattr(handler, "stream", text)
    yield text
    handler.stream = before
    monkeypatch.undo()
    handler.setFormatter(log._formatter())
    logger.setLevel(level)


def test_text_is_one_line(stream: io.StringIO) -> None:
    log.configure(format="text")
    log.get_logger("quire.test").warning("bad path %s", NASTY)
    (line,) = stream.getvalue().splitlines()
    assert re.match(r"W \d\d:\d\d:\d\d quire\.test: bad path a\\nI 12:00:00 quire\.server: forged\\r\\x1b\[31m", line)
    assert line.endswith(r"\x00\u2028\udc80 é 日本")


def test_a_traceback_cannot_look_like_a_line(stream: io.StringIO) -> None:
    log.configure(format="text")
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.get_logger("quire.test").exception("it broke")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("it broke") and any("ValueError" in line for line in rest)
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


def test_json_is_one_object(stream: io.StringIO) -> None:
    log.configure(format="json")
    token = log.request_id.set("cmpl-1")
    try:
        raise ValueError("wrong")
    except ValueError:
        log.get_logger("quire.test").exception("bad path %s", NASTY)
    finally:
        log.request_id.reset(token)
    log.get_logger("quire.test").info("next")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == f"bad path {NASTY}"
    assert (first["level"], first["logger"], first["request_id"]) == ("error", "quire.test", "cmpl-1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first["time"])
    assert first["exception"].startswith("Traceback") and first["exception"].endswith("ValueError: wrong")
    assert second.keys() == {"time", "level", "logger", "message"}


def test_text_names_the_request(stream: io.StringIO) -> None:
    log.configure(format="text")
    token = log.request_id.set("cmpl-1")
    log.get_logger("quire.test").info("slow")
    log.request_id.reset(token)
    assert stream.getvalue().endswith("quire.test: slow [cmpl-1]\n")


def test_the_level(stream: io.StringIO) -> None:
    log.configure(level="error")
    logger = log.get_logger("quire.test")
    logger.warning("unheard")
    logger.error("heard")
    assert "unheard" not in stream.getvalue() and "heard" in stream.getvalue()
    assert os.environ[envs.LOG_LEVEL.name] == "error"


PROGRAM = """
import logging, warnings
from quire import log
log.set_rank("[engine]")
log.take_all()
log.get_logger("quire.test").info("ours")
logging.getLogger("somebody.else").warning("theirs")
warnings.warn("deprecated")
"""


def test_a_child_writes_in_the_same_form(stream: io.StringIO) -> None:
    """The lines of other libraries and warnings too."""
    log.configure(format="json", level="info")
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["quire.test", "somebody.else", "py.warnings"]
    assert {line["process"] for line in lines} == {"engine"}
