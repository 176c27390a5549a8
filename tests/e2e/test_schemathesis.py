"""Every route, called as `/openapi.json` describes it: with bodies that its schema allows, and with others. No answer may
be an error of the server.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from quire.server.app import APIS
from quire.server.openapi import describe_apis
from tests.e2e.server_process import ServerProcess
from tests.server.bad_bodies import NOT_FUZZED, REFUSED_STATUS

_DOCUMENT = schemathesis.openapi.from_dict(describe_apis(APIS))
_CALLED = _DOCUMENT.exclude(path=sorted(NOT_FUZZED))


@pytest.mark.slow
@_CALLED.parametrize()
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_server_error(case: schemathesis.Case, server: ServerProcess) -> None:
    response = case.call(base_url=server.url, timeout=60)
    assert response.status_code < 500 or response.status_code == REFUSED_STATUS, response.text[:1000]
