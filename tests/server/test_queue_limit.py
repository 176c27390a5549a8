"""Requests that are refused since too many wait: 429 with Retry-After in the shape of each protocol."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from quire.errors import BusyError, QueueFullError, TenantQueueFullError
from quire.server.app import APIS
from quire.server.errors import report_error
from quire.server.protocol import Api
from tests.server.error_shapes import assert_shape
from tests.server.mock_engine import MockEngine
from tests.server.protocol_bodies import STREAMED, WHOLE


def api_of(path: str) -> Api:
    return next(api for api in APIS if any(route.path == path for route in api.routes))


async def refuse(
    client: httpx.AsyncClient,
    engine: MockEngine,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    error: Exception,
) -> httpx.Response:
    def check(*_: Any) -> None:
        raise error

    monkeypatch.setattr(engine, "_check", check)
    return await client.post(path, json=body)


@pytest.mark.parametrize(("path", "body"), [*WHOLE.items(), *STREAMED.items()])
async def test_a_full_queue_in_every_protocol(
    client: httpx.AsyncClient,
    engine: MockEngine,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    error = QueueFullError("4 requests are waiting", retry_after_s=7.2)
    response = await refuse(client, engine, monkeypatch, path, body, error)
    assert response.status_code == (529 if path == "/v1/messages" else 429)  # Anthropic's name for an overloaded server
    assert response.headers["retry-after"] == "8"
    assert "4 requests are waiting" in response.text
    assert_shape(api_of(path), response.status_code, response.json())


@pytest.mark.parametrize(("path", "body"), WHOLE.items())
async def test_the_limit_of_a_tenant_in_every_protocol(
    client: httpx.AsyncClient,
    engine: MockEngine,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    response = await refuse(client, engine, monkeypatch, path, body, TenantQueueFullError("9 of your requests"))
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    if path == "/v1/messages":
        assert response.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (TenantQueueFullError("x"), 429, "rate_limit_error", "tenant_queue_full"),
        (QueueFullError("x"), 429, "rate_limit_error", "queue_full"),
        (BusyError("x", retry_after_s=3), 503, "server_overloaded", "busy"),
    ],
)
def test_reports(error: BusyError, status: int, kind: str, code: str) -> None:
    report = report_error(error)
    assert (report.status, report.type, report.code) == (status, kind, code)
    assert report.retry_after_s == error.retry_after_s
