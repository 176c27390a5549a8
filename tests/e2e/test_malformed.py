"""The table of bad requests against a real server: every one is refused, and the server still answers."""

from __future__ import annotations

import dataclasses

import httpx

from tests.e2e.server_process import ServerProcess
from tests.server import malformed
from tests.server.test_malformed import check_answer


def test_malformed_requests_over_http(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for request in malformed.ALL:
            response = client.post(request.path, content=request.content, headers=request.headers)
            try:
                check_answer(request, response)
            except AssertionError as error:
                raise AssertionError(
                    f"{dataclasses.replace(request, content=request.content[:200])}"
                ) from error
        answer = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2}).json()
    assert answer["usage"]["completion_tokens"] == 2
