"""`/v1/completions` over the mock engine: forms of the prompt, exact shapes, echo, logprobs, streaming."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from quire.sampling_params import RequestOutputKind
from tests.server.mock_engine import MockEngine
from tests.server.sse_client import parse_events


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/completions", json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in response.headers
    return parse_events(response.text)


async def test_the_whole_shape(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt="hello", max_tokens=3)
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert isinstance(body.pop("system_fingerprint"), str)
    assert body == {
        "object": "text_completion",
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "text": "hel",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "prompt_logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 3,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_max_tokens_defaults_to_16(client: httpx.AsyncClient) -> None:
    assert (await complete(client, prompt="abc"))["usage"]["completion_tokens"] == 16
    assert (await complete(client, prompt="abc", max_tokens=None))["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "texts", "num_prompt_tokens"),
    [
        ("ab", ["ab"], 3),
        ([97, 98], ["ab"], 2),
        (["ab", "cd"], ["ab", "cd"], 6),
        ([[97, 98], [99]], ["ab", "cc"], 3),
        (["ab", [99]], ["ab", "cc"], 4),
    ],
)
async def test_forms_of_the_prompt(
    client: httpx.AsyncClient, prompt: Any, texts: list[str], num_prompt_tokens: int
) -> None:
    body = await complete(client, prompt=prompt, max_tokens=2)
    assert [choice["text"] for choice in body["choices"]] == texts
    assert body["usage"]["prompt_tokens"] == num_prompt_tokens


async def test_choices_are_prompt_major(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt=["ab", "cd"], n=2, max_tokens=1)
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "a"),
        (1, "a"),
        (2, "c"),
        (3, "c"),
    ]
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["prompt_tokens"] == 6


async def test_null_means_not_given(client: httpx.AsyncClient) -> None:
    names = (
        "temperature",
        "n",
        "stop",
        "logprobs",
        "stream",
        "stream_options",
        "logit_bias",
        "seed",
        "suffix",
        "model",
        "best_of",
    )
    body = await complete(client, prompt="ab", max_tokens=1, **dict.fromkeys(names))
    assert body["choices"][0]["text"] == "a"


async def test_unknown_fields_are_ignored(client: httpx.AsyncClient) -> None:
    assert (await complete(client, prompt="ab", max_tokens=1, user="me", nonsense={"a": [1]}))["choices"]


async def test_parameters_reach_the_engine(client: httpx.AsyncClient, engine: MockEngine) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.5,
        "min_tokens": 1,
        "stop": ["x"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "bad_words": ["no"],
        "allowed_token_ids": [1, 2],
        "max_tokens": 4,
        "n": 2,
        "truncate_prompt_tokens": 5,
    }
    await complete(client, prompt="ab", logit_bias={"5": 1}, priority=3, cache_salt="s", best_of=2, **fields)
    prompt, params, priority, salt = engine.seen[0]
    assert (prompt, priority, salt) == ("ab", 3, "s")
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == {5: 1.0}
    assert params.output_kind == RequestOutputKind.FINAL_ONLY


async def test_defaults_of_the_model(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.config.model.default_sampling_params.update(temperature=0.25, top_k=9)
    await complete(client, prompt="ab", top_k=3)
    params = engine.seen[0][1]
    assert (params.temperature, params.top_k, params.max_tokens) == (0.25, 3, 16)


async def test_add_special_tokens(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt="ab", max_tokens=1, add_special_tokens=False)
    assert body["usage"]["prompt_tokens"] == 2


async def test_return_token_ids(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt="ab", max_tokens=2, return_token_ids=True))["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([1, 97, 98], [97, 98])


async def test_the_best_of_several(client: httpx.AsyncClient, engine: MockEngine) -> None:
    """Sequence i has a mean logprob of -1, -5, -2, -4: 0 and 2 are the best, in this order."""
    make_output = engine._output

    def with_scores(*args: Any) -> Any:
        output = make_output(*args)
        for choice, mean in zip(output.outputs, (-1, -5, -2, -4)):
            choice.cumulative_logprob = mean * len(choice.token_ids)
            choice.text = str(choice.index)
        return output

    engine._output = with_scores  # type: ignore[method-assign]
    body = await complete(client, prompt=["ab", "cd"], n=2, best_of=4, max_tokens=2)
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "0"),
        (1, "2"),
        (2, "0"),
        (3, "2"),
    ]
    assert all(choice["logprobs"] is None for choice in body["choices"])
    assert body["usage"]["completion_tokens"] == 2 * 4 * 2


async def test_tokens_as_token_ids(client: httpx.AsyncClient) -> None:
    body = {"prompt": [97, 98], "max_tokens": 1, "echo": True, "logprobs": 1}
    choice = (await complete(client, **body, return_tokens_as_token_ids=True))["choices"][0]
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [None, -0.5, -0.5],
        "tokens": ["token_id:97", "token_id:98", "token_id:97"],
        "top_logprobs": [None, {"token_id:98": -0.5}, {"token_id:97": -0.5}],
    }


async def test_an_id_of_the_clients_own(client: httpx.AsyncClient) -> None:
    assert (await complete(client, prompt="ab", max_tokens=1, request_id="mine"))["id"] == "cmpl-mine"


async def test_logprobs(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt="ab", max_tokens=2, logprobs=2))["choices"][0]
    assert choice["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -0.5],
        "tokens": ["a", "b"],
        "top_logprobs": [{"a": -0.5, "X": -9999.0}, {"b": -0.5, "X": -9999.0}],
    }


async def test_logprobs_zero_is_the_sampled_token(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt="ab", max_tokens=1, logprobs=0))["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5}]


async def test_echo(client: httpx.AsyncClient) -> None:
    assert (await complete(client, prompt="ab", max_tokens=2, echo=True))["choices"][0]["text"] == "abab"
    assert (await complete(client, prompt=[97, 98], max_tokens=2, echo=True))["choices"][0]["text"] == "abab"


async def test_echo_of_the_prompt_alone_scores_it(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt=[97, 98, 99], max_tokens=0, echo=True, logprobs=1)
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [None, -0.5, -0.5],
        "tokens": ["a", "b", "c"],
        "top_logprobs": [None, {"b": -0.5}, {"c": -0.5}],
    }
    assert body["usage"]["completion_tokens"] == 0


async def test_echo_with_logprobs_goes_on_into_the_output(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt=[97, 98], max_tokens=1, echo=True, logprobs=0))["choices"][0]
    assert choice["logprobs"]["tokens"] == ["a", "b", "a"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


async def test_prompt_logprobs(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt=[97, 98], max_tokens=1, prompt_logprobs=2))["choices"][0]
    assert choice["prompt_logprobs"] == [
        None,
        {
            "98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
            "88": {"logprob": -9999.0, "rank": 2, "decoded_token": "X"},
        },
    ]


async def test_stream(client: httpx.AsyncClient) -> None:
    events = await stream(client, prompt="ab", max_tokens=2)
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1
    assert events[0]["object"] == "text_completion"
    assert [event["choices"] for event in events] == [
        [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "b", "logprobs": None, "finish_reason": "length", "stop_reason": None}],
    ]
    assert all("usage" not in event for event in events)


async def test_stream_of_many_choices(client: httpx.AsyncClient) -> None:
    events = await stream(client, prompt=["ab", "cd"], n=2, max_tokens=2)
    assert all(len(event["choices"]) == 1 for event in events)
    texts, ends = [""] * 4, [0] * 4
    for event in events:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] += choice["finish_reason"] is not None
    assert texts == ["ab", "ab", "cd", "cd"]
    assert ends == [1, 1, 1, 1]


async def test_usage_in_a_stream(client: httpx.AsyncClient) -> None:
    events = await stream(client, prompt="ab", max_tokens=2, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 2
    assert all("usage" not in event for event in events[:-1])
    events = await stream(
        client,
        prompt="ab",
        max_tokens=2,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 2]


async def test_token_ids_in_a_stream(client: httpx.AsyncClient) -> None:
    events = await stream(client, prompt="ab", max_tokens=2, return_token_ids=True)
    choices = [event["choices"][0] for event in events]
    assert [choice["token_ids"] for choice in choices] == [[97], [98]]
    assert choices[0]["prompt_token_ids"] == [1, 97, 98] and "prompt_token_ids" not in choices[1]
    (event,) = await stream(client, prompt="ab", max_tokens=0, echo=True, return_token_ids=True)
    assert (event["choices"][0]["text"], event["choices"][0]["token_ids"]) == ("ab", [])


async def test_stream_with_echo_and_logprobs(client: httpx.AsyncClient) -> None:
    events = await stream(client, prompt=[97, 98], max_tokens=2, echo=True, logprobs=0)
    choices = [event["choices"][0] for event in events]
    assert [choice["text"] for choice in choices] == ["aba", "b"]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0, 1, 2], [3]]


async def test_what_is_wrong_is_said_before_a_stream_begins(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": "a" * 100, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_a_failure_before_the_answer_is_a_500(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.fail_after = 0
    response = await client.post("/v1/completions", json={"prompt": "ab"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "request_failed")


async def test_a_failure_in_a_stream_is_an_event(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.fail_after = 1
    events = await stream(client, prompt="ab", max_tokens=5)
    assert events[0]["choices"][0]["text"] == "a"
    assert events[-1]["error"] == {
        "message": "the worker broke",
        "type": "server_error",
        "param": None,
        "code": "request_failed",
    }


async def test_one_bad_prompt_of_many_ends_the_others(client: httpx.AsyncClient, engine: MockEngine) -> None:
    response = await client.post("/v1/completions", json={"prompt": ["ab", "c" * 100], "max_tokens": 50})
    assert response.status_code == 400
    assert not engine.running
