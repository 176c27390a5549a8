"""`/openapi.json` is a valid document that has every route."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from starlette.routing import compile_path
from starlette.testclient import TestClient

from quire.server.app import APIS, build_app
from quire.server.args import ServerArgs
from quire.server.openapi import describe_apis
from tests.server.mock_engine import MockEngine


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return describe_apis(APIS)


def test_it_is_valid(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)


def test_it_is_served_to_who_has_a_key(document: dict[str, Any]) -> None:
    app = build_app(MockEngine(), ServerArgs(api_key="secret"))
    assert TestClient(app).get("/openapi.json", headers={"x-api-key": "secret"}).json() == document
    assert TestClient(app).get("/openapi.json").status_code == 401


def test_every_route_is_in_it(document: dict[str, Any]) -> None:
    for api in APIS:
        for route in api.routes:
            operation = document["paths"][compile_path(route.path)[1]][route.method.lower()]
            assert operation["tags"] == [api.name] and operation["summary"]
            assert ("requestBody" in operation) == (route.method == "POST" or route.body is not None)


def test_routes_with_a_body_state_its_schema(document: dict[str, Any]) -> None:
    for path, parameter in (
        ("/v1/completions", "min_p"),
        ("/completion", "n_predict"),
        ("/v1/messages", "system"),
    ):
        body = document["paths"][path]["post"]["requestBody"]
        reference = body["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
        assert parameter in schema["properties"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/completions", "503"), ("/completion", "503"), ("/v1/messages", "529"), ("/v1/messages", "413")],
)
def test_errors_have_the_shape_of_their_api(document: dict[str, Any], path: str, status: str) -> None:
    assert status in document["paths"][path]["post"]["responses"]


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/v1/messages", "/tokenize", "/infill"])
async def test_an_error_fits_its_schema(
    client: httpx.AsyncClient, document: dict[str, Any], path: str
) -> None:
    error = (await client.post(path, content=b"{")).json()
    content = document["paths"][path]["post"]["responses"]["400"]["content"]
    schema = {**content["application/json"]["schema"], "components": document["components"]}
    jsonschema.validate(error, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"detail": "x"}, schema)
