"""The page's routes: who gets the page, its headers, its data, and what a listener to `/stats` is told."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.clients import ThreadClient
from quire.engine.engine_core import EngineCore
from quire.errors import BusyError, EngineDeadError
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.auth import ApiKey, ApiKeys
from quire.server.playground import feed, files
from quire.server.playground.feed import Feed
from tests.engine.fakes import FakeExecutor, greedy, make_config, write_byte_tokenizer
from tests.server.mock_engine import MockEngine

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
STATIC = Path(files.__file__).parent / "static"


def client_of(args: ServerArgs) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=build_app(MockEngine(), args))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


# -- files -----------------------------------------------------------------------------------------------------


async def test_browsers_get_the_page_and_others_text(client: httpx.AsyncClient) -> None:
    page = await client.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8" and page.text.startswith("<!doctype html>")
    assert (await client.head("/", headers=BROWSER)).headers["content-type"] == "text/html; charset=utf-8"
    for accept in ("*/*", "application/json", "text/plain", "text/html;q=0, */*", ""):
        text = await client.get("/", headers={"accept": accept})
        assert text.headers["content-type"] == "text/plain; charset=utf-8" and "curl" in text.text
        assert text.headers["vary"] == "Accept"


async def test_headers_and_tags(client: httpx.AsyncClient) -> None:
    for path in ("/", *(f"/playground/{file.name}" for file in STATIC.iterdir())):
        response = await client.get(path, headers=BROWSER)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        tag = response.headers["etag"]
        for known in (tag, f'"other", W/{tag}'):
            again = await client.get(path, headers=BROWSER | {"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (await client.get(path, headers=BROWSER | {"if-none-match": '"other"'})).status_code == 200


async def test_there_are_no_other_files(client: httpx.AsyncClient) -> None:
    for name in ("nothing.js", "..%2fapi.py", "comparison.json"):
        assert (await client.get(f"/playground/{name}")).status_code == 404


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere_and_no_text_becomes_html(path: Path) -> None:
    text = path.read_text()
    links = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text))
    assert links <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|srcdoc", text)
    assert not re.search(r"<[^>]+\s(style|on\w+)=", text)


# -- data ------------------------------------------------------------------------------------------------------


async def test_models(client: httpx.AsyncClient) -> None:
    described = {"has_chat_template": True, "max_model_len": 64}
    expected = [{"name": name} | described for name in ("mock", "alias/two")]
    assert (await client.get("/playground/data/models")).json() == expected


async def test_the_data_needs_the_key() -> None:
    async with client_of(ServerArgs(api_key="one")) as client:
        for path in ("/playground/data/models", "/playground/data/comparison", "/stats"):
            assert (await client.get(path)).status_code == 401
            assert (await client.head(path, headers={"x-api-key": "one"})).status_code == 200


async def test_the_comparison_that_comes_with_quire(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    comparison = (await client.get("/playground/data/comparison")).json()
    assert comparison["source"] == "built-in" and len(comparison["runs"]) == 3
    row = comparison["runs"][0]["rows"][0]
    assert (row["workload"], row["figure"], row["precision"]) == ("W1", "decode_tokens_per_s", "int8")
    assert row["values"]["quire"] == [92.5, 71.57]


async def test_the_comparison_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: dict[str, Any] = {
        "date": "2026-01-01", "machine": {"processor": "a"}, "threads": 1, "scale": 1.0, "command": ["secret"],
        "peers": {"quire": {"title": "Quire", "version": "1", "formats": {}}},
        "rows": [
            {"shape": "S", "precision": "int8", "workload": "W1", "figure": "ttft_ms", "values": {"quire": [1.0]}, "ratio": 1}
        ],
        "measurements": [{}],
    }  # fmt: skip
    report = tmp_path / "peers-report" / "report.json"
    report.parent.mkdir()
    report.write_text(json.dumps(run))
    monkeypatch.chdir(tmp_path)
    for args in (ServerArgs(), ServerArgs(peers_report=str(report))):
        async with client_of(args) as client:
            comparison = (await client.get("/playground/data/comparison")).json()
            assert [row["values"] for row in comparison["runs"][0]["rows"]] == [{"quire": [1.0]}]
            assert "secret" not in str(comparison) and "measurements" not in str(comparison)
    report.write_text('{"rows": 3}')
    for wrong in (str(report), str(tmp_path / "absent.json")):
        async with client_of(ServerArgs(peers_report=wrong)) as client:
            response = await client.get("/playground/data/comparison")
            assert response.status_code == 404 and "peers_report must be" in response.json()["error"]["message"]


# -- /stats ----------------------------------------------------------------------------------------------------


async def test_what_stats_refuses(client: httpx.AsyncClient) -> None:
    response = await client.get("/stats?model=other")
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
    response = await client.get("/stats?request=" + "a" * 300)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "request")


class Model:
    """What a feed needs of a served model."""

    name = "fake"

    def __init__(self, engine: AsyncLLMEngine) -> None:
        self.engine, self.config = engine, engine.config


@pytest.fixture
async def core(tmp_path: Path) -> EngineCore:
    return EngineCore(make_config(write_byte_tokenizer(tmp_path)), FakeExecutor(step_s=0.002, num_blocks=600))


@pytest.fixture
async def watched(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    monkeypatch.setattr(feed, "PERIOD_S", 0.01)
    engine = AsyncLLMEngine(core.config, ThreadClient(core.config, core))
    yield Feed(Model(engine), ApiKeys())  # type: ignore[arg-type]
    await engine.shutdown()


def parse(frame: bytes) -> dict[str, Any]:
    assert frame.startswith(b"data: ") and frame.endswith(b"\n\n")
    content: dict[str, Any] = json.loads(frame[6:])
    return content


async def test_frames(watched: Feed, core: EngineCore) -> None:
    """Pages come when they change, steps once, and the numbers are the scheduler's."""
    words = bytearray(2 * 599)
    steps: list[list[Any]] = []
    async with aclosing(watched.listen("a")) as frames:
        first = parse(await anext(frames))
        assert sorted(first["memory"]["pages"]) == ["0", "1", "2"] and first["steps"] == []
        assert parse(await anext(frames))["memory"]["pages"] == {}
        task = asyncio.create_task(generate(watched, "a", 20))
        async for frame in frames:
            told = parse(frame)
            for page, content in told["memory"]["pages"].items():
                piece = base64.b64decode(content)
                words[int(page) * 512 : int(page) * 512 + len(piece)] = piece
            steps += told["steps"]
            if told["table"] and told["table"]["blocks"]:
                assert all(words[2 * block] == 1 for block in told["table"]["blocks"])
                assert len(told["table"]["blocks"]) == told["memory"]["num_used"] == told["requests"][0][6]
                assert told["memory"]["waste"] == told["memory"]["num_unused_slots"] / (4 * told["memory"]["num_used"])
            if any(step[9] for step in told["steps"]):
                break
        await task
    assert [step[0] for step in steps] == list(range(1, len(steps) + 1))
    assert [step[5] for step in steps if step[5]] == [[1, 6]]
    decodes: list[list[int]] = []
    for step in steps:
        decodes.append(decodes[-1] if step[4] is None else step[4])
    assert decodes == [[]] + [[1]] * 19
    cached = sum(words[2 * block] == 1 and words[2 * block + 1] == 0 for block in range(599))
    assert cached == len(core.scheduler.blocks.device.cached_blocks()) == 6


async def generate(watched: Feed, request_id: str, max_tokens: int) -> None:
    async for _ in watched._engine.generate("prompt", greedy(max_tokens=max_tokens), request_id):  # type: ignore[attr-defined]
        pass


async def test_one_look_serves_all_and_none_is_left_when_they_are_gone(watched: Feed) -> None:
    both = [watched.listen(None), watched.listen(None)]
    await asyncio.gather(*(anext(frames) for frames in both))
    task = watched._task
    await both[0].aclose()
    assert watched.has_listeners and parse(await anext(both[1]))["model"] == "fake"
    await both[1].aclose()
    assert not watched.has_listeners
    done, _ = await asyncio.wait([task], timeout=5)  # type: ignore[type-var, list-item]
    assert [each.cancelled() for each in done] == [True]
    async with aclosing(watched.listen(None)) as frames:  # and it can begin again
        assert parse(await anext(frames))["stats"]["num_running"] == 0


async def test_listeners_are_counted(watched: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_LISTENERS", 1)
    async with aclosing(watched.listen(None)) as frames:
        await anext(frames)
        with pytest.raises(BusyError, match="1 listeners"):
            await anext(watched.listen(None))


async def test_a_slow_listener_gets_every_step(watched: Feed) -> None:
    async with aclosing(watched.listen(None)) as frames:
        await anext(frames)
        await generate(watched, "a", 15)
        await asyncio.sleep(0.1)
        told = parse(await anext(frames))
        assert len(told["steps"]) == 15 and told["num_missed"] == 0


async def test_a_dead_engine_ends_the_stream(watched: Feed) -> None:
    async with aclosing(watched.listen(None)) as frames:
        await anext(frames)
        watched._engine._die(EngineDeadError("gone"))  # type: ignore[attr-defined]
        with pytest.raises(EngineDeadError, match="gone"):
            for _ in range(100):
                await anext(frames)


async def test_tenants_do_not_see_the_ids_of_others(watched: Feed) -> None:
    """Requests go by numbers, by which their block tables can be chosen too."""
    watched._keys = ApiKeys([ApiKey("one"), ApiKey("two")])
    async with aclosing(watched.listen("request 1")) as frames:
        await anext(frames)
        task = asyncio.create_task(generate(watched, "patient-7", 60))
        seen = b""
        async for frame in frames:
            seen += frame
            told = parse(frame)
            if told["table"] and told["table"]["blocks"]:
                break
        assert told["table"] == {"request": "request 1", "blocks": told["table"]["blocks"]}
        assert len(told["table"]["blocks"]) == told["requests"][0][6] and told["requests"][0][1] == "request 1"
        await task
    assert b"patient-7" not in seen and b'[1,"request 1",6]' in seen
