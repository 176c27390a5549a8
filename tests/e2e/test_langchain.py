"""LangChain's ChatOpenAI against a real server: invoke, stream, batch, both of OpenAI's chat APIs."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI

from tests.e2e.server_process import ServerProcess

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


def chat(server: ServerProcess, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", model="folio", temperature=0, max_retries=0, **options
    )


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_invoke_and_stream(folio_server: ServerProcess, use_responses_api: bool) -> None:
    model = chat(folio_server, use_responses_api=use_responses_api, stream_usage=True)
    whole = model.invoke([("system", "You are a helpful assistant."), ("user", QUESTION)])
    assert whole.text == ANSWER
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] > 0
    total = AIMessageChunk("")
    for chunk in model.stream([("system", "You are a helpful assistant."), ("user", QUESTION)]):
        assert isinstance(chunk, AIMessageChunk)
        total += chunk
    assert total.text == ANSWER
    assert total.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_batch(folio_server: ServerProcess) -> None:
    answers = chat(folio_server).batch([QUESTION, QUESTION.replace("France", "Spain")])
    assert [answer.text for answer in answers] == [ANSWER, "The capital of Spain is Madrid."]


async def test_ainvoke(folio_server: ServerProcess) -> None:
    assert (await chat(folio_server).ainvoke(QUESTION)).text == ANSWER
