"""Images through every protocol that has them, over a small model that reads them; and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from quire import LLM, SamplingParams
from quire.config.engine_args import EngineArgs
from quire.engine.async_engine import AsyncLLMEngine
from quire.images import addresses
from quire.server.app import build_app
from tests.images.web import running
from tests.models.llava import draw_picture, make_llava, save_llava, save_tokenizer

OPTIONS = {"num_gpu_blocks_override": 200, "num_threads": 1, "limit_mm_per_prompt": {"image": 3}, "dtype": "float32"}
TEXT = "what is this?"


def png_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


A, B = (png_of(draw_picture(seed)) for seed in (1, 2))


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64_of(data)}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text_part(text: str = TEXT) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("llava")
    save_tokenizer(save_llava(make_llava("llama-class-token-dropped"), path))
    (path / "a.png").write_bytes(A)
    return path


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, str]:
    """What `LLM.chat` says of no picture, of each, and of both."""
    prompts = {
        "none": user(text_part()),
        "a": user(image_part(data_url(A)), text_part()),
        "b": user(text_part(), {"type": "image_pil", "image_pil": Image.open(io.BytesIO(B))}),
        "ab": user(image_part(data_url(A)), image_part(data_url(B)), text_part()),
    }
    params = SamplingParams(temperature=0, max_tokens=8)
    with LLM(str(folder), **OPTIONS) as llm:
        outputs = llm.chat(list(prompts.values()), params, use_tqdm=False)
    found = {name: output.outputs[0].text for name, output in zip(prompts, outputs)}
    assert len(set(found.values())) == 4
    return found


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    args = EngineArgs(
        model=str(folder),
        served_model_name="m",
        allowed_local_media_path=str(folder),
        allowed_media_domains=["*.example"],
        disable_log_stats=True,
        **OPTIONS,
    )
    engine = AsyncLLMEngine.from_engine_args(args)
    transport = httpx.ASGITransport(app=build_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        yield client
    await engine.shutdown()


async def chat(client: httpx.AsyncClient, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 8, **fields}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


async def test_the_chat_api_says_what_llm_chat_says(client: httpx.AsyncClient, answers: dict[str, str]) -> None:
    one = await chat(client, user(image_part(data_url(A)), text_part()))
    assert said(one) == answers["a"]
    assert said(await chat(client, user(text_part(), {"type": "input_image", "image_url": data_url(B)}))) == answers["b"]
    both = await chat(client, user(image_part(data_url(A)), image_part(data_url(B)), text_part()))
    none = await chat(client, user(text_part()))
    assert (said(both), said(none)) == (answers["ab"], answers["none"])
    tokens = [answer["usage"]["prompt_tokens"] for answer in (none, one, both)]
    assert [more - less for less, more in pairwise(tokens)] == [26, 26]  # 25 vectors and a newline


async def test_a_stream_and_several_choices(client: httpx.AsyncClient, answers: dict[str, str]) -> None:
    messages = user(image_part(data_url(A)), text_part())
    body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 8, "stream": True}
    lines = (await client.post("/v1/chat/completions", json=body)).text.splitlines()
    chunks = [httpx.Response(200, text=line[6:]).json() for line in lines if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == answers["a"]
    several = await chat(client, messages, n=3)
    assert [choice["message"]["content"] for choice in several["choices"]] == [answers["a"]] * 3


async def test_local_files_and_addresses(
    client: httpx.AsyncClient, answers: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(await chat(client, user(image_part(f"file://{folder}/a.png"), text_part()))) == answers["a"]
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(addresses, "resolve", lambda host, port: ["127.0.0.1"])
    with running() as web:
        web.serve("/b.png", B)
        url = f"http://pictures.example:{web.port}/b.png"
        assert said(await chat(client, user(text_part(), image_part(url)))) == answers["b"]


async def test_other_protocols(client: httpx.AsyncClient, answers: dict[str, str]) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64_of(A)}
    block = {"type": "image", "source": source}
    body = {"model": "m", "messages": user(block, text_part()), "temperature": 0, "max_tokens": 8}
    message = (await client.post("/v1/messages", json=body)).json()
    assert message["content"][0]["text"] == answers["a"]
    del body["temperature"], body["max_tokens"]
    count = (await client.post("/v1/messages/count_tokens", json=body)).json()
    assert count["input_tokens"] == message["usage"]["input_tokens"]

    items = user({"type": "input_text", "text": TEXT}, {"type": "input_image", "image_url": data_url(B)})
    body = {"model": "m", "input": items, "temperature": 0, "max_output_tokens": 16}
    response = (await client.post("/v1/responses", json=body)).json()
    assert response["output"][0]["content"][0]["text"].startswith(answers["b"])
    listed = (await client.get(f"/v1/responses/{response['id']}/input_items")).json()["data"]
    assert listed[0]["content"][1]["image_url"] == data_url(B)

    options = {"temperature": 0, "num_predict": 8}
    body = {"model": "m", "stream": False, "options": options}
    messages = [{"role": "user", "content": TEXT, "images": [base64_of(A)]}]
    ollama = (await client.post("/api/chat", json={**body, "messages": messages})).json()
    assert ollama["message"]["content"] == answers["a"]
    ollama = (await client.post("/api/generate", json={**body, "prompt": TEXT, "images": [base64_of(A)]})).json()
    assert ollama["response"] == answers["a"] and not ollama.get("context")
    assert (await client.post("/api/show", json={"model": "m"})).json()["capabilities"] == ["completion", "vision"]


WHERE = "messages[0].content[0]"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([image_part("data:image/png;base64,aGk=")], f"{WHERE} must be an image in one of the formats"),
        ([image_part("data:image/png;base64,a")], f"{WHERE} holds text that is not base64"),
        ([image_part(data_url(A[:300]))], f"{WHERE} holds an image file that is cut off or damaged"),
        ([image_part("http://127.0.0.1/")], f"{WHERE} names the host 127.0.0.1, which is not allowed"),
        ([image_part("http://localhost.example/")], f"{WHERE} names the host localhost.example, which cannot be resolved"),
        ([image_part("file:///etc/passwd")], f"{WHERE} must name a file below the folder"),
        ([image_part(data_url(A))] * 4, "a prompt may have at most 3 images (limit_mm_per_prompt), got 4"),
        ([image_part(data_url(A)), text_part("<image>")], "messages with 1 images must give a prompt with as many image tokens"),
        ([text_part("<image>")], "the prompt must hold the image token (id 258) once for each image, got it 1 times for 0"),
        ([{"type": "video_url", "video_url": {"url": "https://a/b"}}], f"{WHERE}: video parts are not supported yet"),
    ],
)
async def test_images_that_are_refused(client: httpx.AsyncClient, parts: list[Any], message: str) -> None:
    response = await client.post("/v1/chat/completions", json={"model": "m", "messages": user(*parts)})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


async def test_a_template_that_knows_no_parts_gets_the_image_token(tmp_path: Path, folder: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }} {% endfor %}ASSISTANT:"
    params = SamplingParams(temperature=0, max_tokens=8)
    with LLM(str(folder), chat_template=template, **OPTIONS) as llm:
        chatted = llm.chat(user(image_part(data_url(A)), text_part()), params, use_tqdm=False)[0]
        prompt = f"USER: <image>\n{TEXT} ASSISTANT:"
        image = Image.open(io.BytesIO(A))
        given = llm.generate({"prompt": prompt, "multi_modal_data": {"image": image}}, params, use_tqdm=False)[0]
    assert chatted.prompt == given.prompt == prompt
    assert chatted.outputs[0].text == given.outputs[0].text


def test_the_offline_api_names_what_is_wrong(folder: Path) -> None:
    with LLM(str(folder), **OPTIONS) as llm:
        for part, message in (
            ({"type": "image_url"}, "messages[0].content[0].image_url must be an address or an image, got None"),
            (image_part("https://example.org/a.png"), "names the host example.org, which is not allowed"),
            (image_part(f"file://{folder}/a.png"), "is a file:// URL, which this server does not read"),
        ):
            with pytest.raises(ValueError) as raised:
                llm.chat(user(part), use_tqdm=False)
            assert message in str(raised.value)


async def test_a_model_without_vision(client: httpx.AsyncClient) -> None:
    from tests.server.mock_engine import MockEngine

    transport = httpx.ASGITransport(app=build_app(MockEngine()))
    refusals = {
        "/v1/chat/completions": {"messages": user(image_part(data_url(A)))},
        "/v1/messages": {
            "max_tokens": 5,
            "messages": user({"type": "image", "source": {"type": "url", "url": "https://a/b"}}),
        },
        "/v1/responses": {"input": user({"type": "input_image", "image_url": data_url(A)})},
        "/tokenize": {"messages": user(image_part(data_url(A)))},
        "/chat_tokenize": {"messages": user(image_part(data_url(A)))},
        "/apply-template": {"messages": user(image_part(data_url(A)))},
    }
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as other:
        for path, body in refusals.items():
            response = await other.post(path, json={"model": "mock", **body})
            assert response.status_code in (400, 422, 501), path
            assert "content[0]: image parts are not supported by this model" in response.text, path
