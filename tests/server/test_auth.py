"""API keys: what opens a server, where keys come from, whose request it is, and that a file of keys may change."""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from quire.cli.main import build_parser
from quire.errors import ConfigError, WrongApiKeyError
from quire.server import auth
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.auth import ApiKey, ApiKeys, api_keys, tenant_of
from quire.server.context import ServerContext
from tests.server.mock_engine import MockEngine


def client_of(args: ServerArgs) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=build_app(MockEngine(), args))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


def opens(keys: ApiKeys, key: str) -> bool:
    try:
        keys.tenant(f"Bearer {key}", "")
    except WrongApiKeyError:
        return False
    return True


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "Basic one", "one", "Bearer ключ", "Bearer on", "Bearer one1"]
)
async def test_without_a_key_nothing_is_generated(header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    async with client_of(ServerArgs(api_key="one")) as client:
        response = await client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


async def test_any_of_the_keys_opens() -> None:
    async with client_of(ServerArgs(api_key=["one", "two"])) as client:
        for headers in (
            {"Authorization": "Bearer one"},
            {"Authorization": "bearer two"},
            {"X-Api-Key": "two"},
        ):
            response = await client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
            assert response.status_code == 200


async def test_the_key_is_asked_for_before_the_body_is_read() -> None:
    async with client_of(ServerArgs(api_key="one")) as client:
        assert (await client.post("/v1/completions", content=b"{")).status_code == 401


async def test_what_is_public_says_nothing_about_models() -> None:
    async with client_of(ServerArgs(api_key="one")) as client:
        text = (await client.get("/")).text
        assert "Authorization: Bearer KEY" in text and "mock" not in text


# -- where keys come from ----------------------------------------------------------------------------------------


def test_the_environment_may_hold_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "three")
    assert opens(api_keys(ServerArgs()), "three")
    monkeypatch.setenv("QUIRE_API_KEY", "one, two")
    keys = api_keys(ServerArgs())
    assert [opens(keys, key) for key in ("one", "two", "one, two", "three")] == [True, True, False, False]
    assert not opens(api_keys(ServerArgs(api_key="four")), "one")


@pytest.mark.parametrize("key", ["", " ", "a b", "ключ", "a\n", "x" * 513])
def test_a_key_that_no_header_can_carry(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one above all: `--api-key "$KEY"` must not open the server to everybody."""
    for given in (key, ["good", key]):
        with pytest.raises(
            ConfigError, match="^api_key must be 1 to 512 printable ASCII characters"
        ) as failed:
            api_keys(ServerArgs(api_key=given))
        assert len(key) < 2 or key not in str(failed.value)
    monkeypatch.setenv("QUIRE_API_KEY", "a b")
    with pytest.raises(ConfigError, match="^QUIRE_API_KEY must be"):
        api_keys(ServerArgs())


# -- tenants -----------------------------------------------------------------------------------------------------


def test_tenants() -> None:
    names = [ApiKey("one").tenant, ApiKey("two").tenant, ApiKey("a", "alice").tenant]
    assert len(set(names)) == 3 and all(len(name) == 16 and int(name, 16) >= 0 for name in names)
    assert ApiKey("b", "alice").tenant == names[2]
    assert ApiKey("alice").tenant != names[2]
    assert "secret" not in repr(ApiKey("secret", "alice"))
    keys = ApiKeys([ApiKey("one"), ApiKey("a", "alice"), ApiKey("b", "alice")])
    assert keys.num_tenants == 2
    assert keys.tenant("Bearer b", "") == keys.tenant("", "a") == names[2]
    assert (ApiKeys().tenant("Bearer one", ""), ApiKeys().num_tenants) == ("", 1)


async def test_a_handler_learns_whose_request_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def handler(context: ServerContext, request: Request) -> Response:
        seen.append(tenant_of(request))
        return Response()

    for args in (ServerArgs(), ServerArgs(api_key="one")):
        app = build_app(MockEngine(), args)
        endpoint = app._endpoints["GET", "/version"]  # type: ignore[attr-defined]
        monkeypatch.setattr(endpoint, "_handler", handler)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://server"
        ) as client:
            await client.get("/version", headers={"x-api-key": "one"})
    assert seen == ["", ApiKey("one").tenant]


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes under a secret of the process, of one length, and all of them even if the first is right."""
    compared: list[tuple[bytes, bytes]] = []
    digest = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or digest(a, b))
    keys = ApiKeys([ApiKey("one"), ApiKey("two"), ApiKey("a" * 500)])
    keys.tenant("Bearer one", "")
    assert len(compared) == 2 * 3
    assert {len(value) for pair in compared for value in pair} == {32}
    other = ApiKeys([ApiKey("one")])
    assert other._entries[0][0] != keys._entries[0][0]
    assert "two" not in repr(vars(keys)) and b"two" not in b"".join(digest for digest, _ in keys._entries)


# -- the file ----------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    """As an operator's tools do: a new file in the old one's place."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.chmod(0o600)
    os.replace(beside, path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    write(path, "# users\nalice:one\n\n  alice:two  \nthree\n")
    return path


@pytest.fixture
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "LOOK_EVERY_S", 0.0)


def test_a_file_of_keys(file: Path) -> None:
    keys = api_keys(ServerArgs(api_key="four", api_key_file=str(file)))
    assert [
        opens(keys, key) for key in ("one", "two", "three", "four", "alice", "alice:one", "# users", "")
    ] == [True] * 4 + [False] * 4
    assert keys.num_tenants == 3


@pytest.mark.usefixtures("look_at_once")
def test_the_file_may_change(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = api_keys(ServerArgs(api_key_file=str(file)))
    assert opens(keys, "one")
    write(file, "alice:two\n")
    assert (opens(keys, "one"), opens(keys, "two")) == (False, True)
    for wrong in ("", "# nobody\n", "a b\n", "alice:two\nbob:two\n"):  # a server with keys never opens itself
        write(file, wrong)
        assert (opens(keys, "anything"), opens(keys, "two")) == (False, True)
    file.unlink()
    assert (opens(keys, "anything"), opens(keys, "two")) == (False, True)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 5
    write(file, "five\n")
    assert (opens(keys, "five"), opens(keys, "two")) == (True, False)


def test_the_file_is_looked_at_once_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    keys = api_keys(ServerArgs(api_key_file=str(file)))
    write(file, "five\n")
    assert not opens(keys, "five")
    now[0] += auth.LOOK_EVERY_S
    assert opens(keys, "five")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "at least one key"),
        ("# none\n", "at least one key"),
        ("good\nsecret key\n", "line 2"),
        ("a/b:secret\n", "line 1"),
        ("alice:\n", "line 1"),
        ("alice:secret\nbob:secret\n", "alice and bob"),
        ("x" * (auth.MAX_FILE_BYTES + 1), "bytes"),
    ],
)
def test_a_file_that_is_none_of_keys(file: Path, text: str, names: str) -> None:
    write(file, text)
    with pytest.raises(ConfigError, match="^api_key_file must") as failed:
        api_keys(ServerArgs(api_key_file=str(file)))
    assert names in str(failed.value) and "secret" not in str(failed.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="api_key_file must be a file"):
        api_keys(ServerArgs(api_key_file=str(tmp_path / "absent")))


def test_a_file_that_everybody_can_read(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    api_keys(ServerArgs(api_key_file=str(file)))
    assert not caplog.records
    file.chmod(0o644)
    api_keys(ServerArgs(api_key_file=str(file)))
    assert "every user of this machine can read" in caplog.text


def test_keys_are_given_again_and_again() -> None:
    words = ["--api-key", "one", "--api-key", "two", "three"]
    for parser, start in ((ServerArgs.add_cli_args(argparse.ArgumentParser()), []), (build_parser("serve"), ["serve"])):
        assert parser.parse_args([*start, *words]).api_key == ["one", "two", "three"]
