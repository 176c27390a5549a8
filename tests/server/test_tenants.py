"""Which tenant a request belongs to, and what it shares with others."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from quire.config.engine_args import EngineArgs
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.run import with_policy
from tests.server.mock_engine import MockEngine
from tests.server.protocol_bodies import WHOLE


async def ask(args: ServerArgs, *headers: dict[str, str], path: str = "/v1/completions", **fields: Any) -> MockEngine:
    """The engine after one request with each of the headers."""
    engine = MockEngine()
    transport = httpx.ASGITransport(app=build_app(engine, args))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for each in headers:
            response = await client.post(path, json=WHOLE[path] | fields, headers=each)
            assert response.status_code == 200, response.text
    return engine


def salts(engine: MockEngine) -> list[str | None]:
    return [salt for _, _, _, salt in engine.seen]


ONE, TWO = {"Authorization": "Bearer one"}, {"x-api-key": "two"}
KEYS = ServerArgs(api_key=["one", "two"])


@pytest.mark.parametrize("path", list(WHOLE))
async def test_each_key_is_a_tenant_in_every_protocol(path: str) -> None:
    engine = await ask(KEYS, ONE, TWO, {"x-api-key": "one"}, path=path)
    first, second, third = engine.tenants
    assert first == third != second
    assert all(len(tenant) == 16 and int(tenant, 16) for tenant in engine.tenants)
    assert salts(engine) == [f"{tenant}/" for tenant in engine.tenants]


@pytest.mark.parametrize("args", [ServerArgs(), ServerArgs(api_key="one"), ServerArgs(api_key=["one"])])
async def test_with_one_key_or_none_nothing_is_kept_apart(args: ServerArgs) -> None:
    engine = await ask(args, ONE, ONE)
    assert engine.tenants == ["", ""] and salts(engine) == [None, None]


async def test_only_the_key_that_opens_names_the_tenant() -> None:
    """Else a client could be a new tenant with every request."""
    engine = await ask(KEYS, ONE, ONE | {"x-api-key": "anything"}, {"Authorization": "Bearer anything", "x-api-key": "one"})
    assert len(set(engine.tenants)) == 1


async def test_a_clients_own_salt_separates_within_its_tenant() -> None:
    engine = await ask(KEYS, ONE, TWO, cache_salt="mine")
    assert salts(engine) == [f"{tenant}/mine" for tenant in engine.tenants] and len(set(salts(engine))) == 2


async def test_the_cache_may_be_shared() -> None:
    args = ServerArgs(api_key=["one", "two"], share_prefix_cache_between_tenants=True)
    engine = await ask(args, ONE, TWO)
    assert len(set(engine.tenants)) == 2 and salts(engine) == [None, None]
    assert salts(await ask(args, ONE, TWO, cache_salt="ours")) == ["ours", "ours"]


@pytest.mark.parametrize(
    ("keys", "given", "policy"),
    [
        (None, None, None),
        (["one"], None, None),
        (["one", "two"], None, "fair"),
        (["one", "two"], "fcfs", "fcfs"),
        (["one", "two"], "priority", "priority"),
    ],
)
def test_several_keys_share_fairly_unless_told_otherwise(
    keys: list[str] | None, given: str | None, policy: str | None
) -> None:
    args = with_policy(EngineArgs(scheduling_policy=given), ServerArgs(api_key=keys))
    assert args.scheduling_policy == policy
