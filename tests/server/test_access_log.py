"""The line for each request, in both forms, and what it may not hold."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from quire import envs
from quire.server.access_log import AccessLog
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.logs import make_access_log
from tests.server.mock_engine import MockEngine


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(envs.LOG_FORMAT.name, request.param)
    return str(request.param)


@pytest.fixture
def lines(form: str, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr("sys.stderr", text)
    return text


@pytest.fixture
async def client(lines: io.StringIO) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(MockEngine())
    app.state.context.access_log = AccessLog()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        yield client


async def test_an_answer(client: httpx.AsyncClient, lines: io.StringIO, form: str) -> None:
    body = {"prompt": "secret", "max_tokens": 4}
    answer = await client.post("/v1/completions?key=hidden", json=body, headers={"X-Request-Id": "abc"})
    (line,) = lines.getvalue().splitlines()
    assert "secret" not in line and "hidden" not in line
    if form == "text":
        pattern = (
            r"I \d\d:\d\d:\d\d quire\.access: 127\.0\.0\.1:\d+ POST /v1/completions 200 \d+\.\d ms "
            rf"{len(answer.content)} B mock 7\+4 tokens cmpl-abc"
        )
        assert re.fullmatch(pattern, line), line
        return
    fields = json.loads(line)
    assert fields.pop("duration_ms") >= 0 and fields.pop("time") and fields.pop("client").startswith("127.0.0.1:")
    assert fields == {
        "level": "info",
        "logger": "quire.access",
        "message": "POST /v1/completions 200",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "bytes": len(answer.content),
        "model": "mock",
        "prompt_tokens": 7,
        "output_tokens": 4,
        "request_id": "cmpl-abc",
    }


async def test_what_clients_send_stays_on_one_line(client: httpx.AsyncClient, lines: io.StringIO, form: str) -> None:
    await client.get("/a%0AI%2012:00:00%20forged%1B%5B31m")
    (line,) = lines.getvalue().splitlines()
    assert line.isprintable()
    if form == "json":
        assert json.loads(line)["path"] == "/a\nI 12:00:00 forged\x1b[31m"


async def test_no_line_for_what_machines_poll(client: httpx.AsyncClient, lines: io.StringIO) -> None:
    for path in ("/health", "/metrics", "/load", "/version", "/ping"):
        await client.get(path)
    assert not lines.getvalue()


@pytest.mark.parametrize("options", [{"disable_uvicorn_access_log": True}, {"uvicorn_log_level": "warning"}])
def test_it_can_be_left_out(options: dict) -> None:
    assert make_access_log(ServerArgs()) is not None
    assert make_access_log(ServerArgs(**options)) is None


@pytest.mark.parametrize("max_len", [None, 3])
async def test_prompts_are_logged_only_when_asked(
    caplog: pytest.LogCaptureFixture, max_len: int | None
) -> None:
    logger_name = "quire.server.request_log"
    for args in (ServerArgs(), ServerArgs(enable_log_requests=True, max_log_len=max_len)):
        caplog.clear()
        transport = httpx.ASGITransport(app=build_app(MockEngine(), args))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            with caplog.at_level("DEBUG", logger="quire"):
                await client.post("/v1/completions", json={"prompt": "secret\n", "max_tokens": 4})
        texts = [record.getMessage() for record in caplog.records if record.name == logger_name]
        if not args.enable_log_requests:
            assert not any("secret" in record.getMessage() for record in caplog.records)
        else:
            shown = repr("secret\n" if max_len is None else "sec")
            assert len(texts) == 1 and f"prompt {shown}, SamplingParams(" in texts[0]
