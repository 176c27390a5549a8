"""`/v1/responses` through OpenAI's client: whole, streamed, as a conversation, stored and deleted."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.e2e.server_process import ServerProcess

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


@pytest.fixture
def client(folio_server: ServerProcess) -> Iterator[openai.OpenAI]:
    url = f"{folio_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_create(client: openai.OpenAI) -> None:
    response = client.responses.create(model="folio", input=QUESTION, temperature=0)
    assert (response.output_text, response.status) == (ANSWER, "completed")
    assert response.usage is not None and response.usage.output_tokens > 0
    count = client.responses.input_tokens.count(model="folio", input=QUESTION)
    assert count.input_tokens == response.usage.input_tokens


def test_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="folio", input=QUESTION, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == ANSWER
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    numbers = [event.sequence_number for event in events if hasattr(event, "sequence_number")]
    assert numbers == sorted(set(numbers))


def test_a_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(model="folio", input=QUESTION, temperature=0)
    second = client.responses.create(
        model="folio", input="And of Italy?", previous_response_id=first.id, temperature=0
    )
    whole = client.responses.create(
        model="folio",
        input=[
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": "And of Italy?"},
        ],
        temperature=0,
    )
    assert second.output_text == whole.output_text
    assert second.usage is not None and whole.usage is not None
    assert second.usage.input_tokens == whole.usage.input_tokens


def test_stored(client: openai.OpenAI) -> None:
    made = client.responses.create(model="folio", input=QUESTION, max_output_tokens=2)
    assert made.incomplete_details is not None and made.incomplete_details.reason == "max_output_tokens"
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id).data
    assert item.content[0].text == QUESTION  # type: ignore[union-attr]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_what_is_not_there_yet(client: openai.OpenAI) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    with pytest.raises(openai.BadRequestError, match="not supported yet") as error:
        client.responses.create(model="folio", input="x", tools=[tool])  # type: ignore[list-item]
    assert error.value.param == "tools"
