"""`GET /openapi.json`: an OpenAPI 3.1 document of every route, made from the route tables and the types of the bodies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

import quire
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport
from quire.server.protocol import Api, Route
from quire.server.replies import json_response

_EXAMPLE_ERRORS = {
    400: ErrorReport(400, "invalid_request_error", "temperature must be ...", "temperature"),
    401: ErrorReport(401, "invalid_request_error", "This server asks for an API key", code="invalid_api_key"),
    403: ErrorReport(403, "invalid_request_error", "The routes below /admin are closed", code="admin_disabled"),
    404: ErrorReport(404, "invalid_request_error", "The model ... does not exist", code="model_not_found"),
    409: ErrorReport(409, "invalid_request_error", "The model is being reloaded", code="conflict"),
    413: ErrorReport(413, "invalid_request_error", "The request body ...", code="body_too_large"),
    429: ErrorReport(429, "rate_limit_error", "4 requests are waiting, ...", code="queue_full"),
    500: ErrorReport(500, "server_error", "...", code="request_failed"),
    503: ErrorReport(503, "service_unavailable", "The server is shutting down", code="shutting_down"),
    504: ErrorReport(504, "timeout_error", "The request was not finished within ...", code="deadline_exceeded"),
}
"""What a route may answer instead of a result; its API decides about status and shape."""
_FOR_ALL = (401, 500, 503)
_WITH_BODY = (400, 404, 413, 429, 504)
_FOR_ADMINS = (403, 409)


def openapi_api(apis: Sequence[Api]) -> Api:
    """The API whose one route describes `apis`."""

    async def show_openapi(context: ServerContext, request: Request) -> Response:
        """This document."""
        return json_response(document())

    document = cache(lambda: describe_apis(apis))
    shape_error = next(iter(apis)).shape_error
    return Api("openapi", (Route("GET", "/openapi.json", show_openapi),), shape_error)


def describe_apis(apis: Sequence[Api]) -> dict[str, Any]:
    """The document. Each operation has its request's schema, the errors of its API, and its handler's first sentence."""
    bodies = list(dict.fromkeys(route.body for api in apis for route in api.routes if route.body is not None))
    refs, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(bodies, refs))
    paths: dict[str, dict[str, Any]] = {}
    for api in apis:
        for route in api.routes:
            _, path, _ = compile_path(route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(api, route, schema_of)
    errors = {_error_name(api): _schema_of_example(_shape(api, 400)[1]) for api in apis}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quire", "version": quire.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas | errors,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(api: Api, route: Route, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(api, route),
        "tags": [api.name],
        "summary": _summary(route),
        "parameters": list(_parameters(route)),
        "responses": {"200": {"description": "The result.", "content": {"*/*": {}}}, **_errors(api, route)},
        "security": _security(route),
    }
    if route.method == "POST" or route.body is not None:
        schema = {"type": "object"} if route.body is None else schema_of[route.body]
        operation["requestBody"] = {
            "required": route.body is not None,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    """Ways to be let in; an empty one where a server may ask for no key."""
    if route.is_open:
        return [{}]
    return [*([] if route.needs_admin else [{}]), {"bearer": []}, {"x-api-key": []}]


def _operation_id(api: Api, route: Route) -> str:
    words = re.findall(r"[A-Za-z0-9]+", f"{api.name} {route.method.lower()} {route.path}")
    return "_".join(words)


def _summary(route: Route) -> str:
    return (inspect.getdoc(route.handler) or route.path).partition("\n")[0]


def _parameters(route: Route) -> Iterable[dict[str, Any]]:
    _, _, converters = compile_path(route.path)
    for name in converters:
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _errors(api: Api, route: Route) -> dict[str, Any]:
    statuses = (*_FOR_ALL, *_WITH_BODY) if route.method == "POST" else _FOR_ALL
    if "{" in route.path:
        statuses = (*statuses, 404)
    if route.needs_admin:
        statuses = (*statuses, *_FOR_ADMINS)
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_error_name(api)}"}}}
    return {
        str(_shape(api, status)[0]): {"description": _EXAMPLE_ERRORS[status].type, "content": content}
        for status in sorted(set(statuses))
    }


def _shape(api: Api, status: int) -> tuple[int, Any]:
    return api.shape_error(_EXAMPLE_ERRORS[status])


def _error_name(api: Api) -> str:
    return f"{re.sub('[^A-Za-z0-9]', '', api.name)}Error"


def _schema_of_example(value: Any) -> dict[str, Any]:
    """A schema that values like this one satisfy: the same keys, numbers for numbers; text may be missing."""
    if isinstance(value, dict):
        properties = {name: _schema_of_example(item) for name, item in value.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if isinstance(value, int):
        return {"type": "integer"}
    return {"type": ["string", "null"]}
