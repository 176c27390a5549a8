"""Every bad request gets a 4xx in its API's error shape that names what is wrong, and the server goes on."""

from __future__ import annotations

import httpx
import pytest

from quire.server.protocol import Api, Route
from tests.server import malformed
from tests.server.bad_bodies import post_routes, url_of
from tests.server.error_shapes import assert_shape
from tests.server.malformed import BadRequest

MAX_ERROR_BYTES = 2000


def check_answer(request: BadRequest, response: httpx.Response) -> None:
    """The answer to a bad request: status, shape, and a short message that names the parameter."""
    assert response.status_code == request.status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) <= MAX_ERROR_BYTES
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert request.names in error["message"] or request.names in (error["param"] or ""), error


def test_the_table_is_large() -> None:
    assert len(malformed.ALL) >= 200


@pytest.mark.parametrize("request_", malformed.ALL, ids=lambda request: request.name)
async def test_malformed(client: httpx.AsyncClient, request_: BadRequest) -> None:
    response = await client.post(request_.path, content=request_.content, headers=request_.headers)
    check_answer(request_, response)
    assert (await client.post("/v1/completions", json={"prompt": "ok", "max_tokens": 2})).json()["choices"][
        0
    ]["text"] == "ok"


@pytest.mark.parametrize(
    ("api", "route"), post_routes(), ids=lambda value: getattr(value, "path", getattr(value, "name", ""))
)
async def test_bodies_that_no_route_takes(client: httpx.AsyncClient, api: Api, route: Route) -> None:
    """Each is refused in its own API's shape; a route that is not supported says that instead."""
    for name, content in malformed.WRONG_ANYWHERE.items():
        response = await client.post(url_of(route.path), content=content)
        assert 400 <= response.status_code < 500 or response.status_code == 501, (name, response.text)
        assert_shape(api, response.status_code, response.json())
