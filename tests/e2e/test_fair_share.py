"""Several API keys, a short queue and time limits on a real server with two seats."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

ONE, TWO = {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}
NUM_CLIENTS = 40
BODY = {"prompt": "What is the capital of France?", "max_tokens": 20, "ignore_eos": True, "temperature": 0}
LONG = BODY | {"max_tokens": 300}
TLS = ssl.create_default_context()
"""Not used, but each client would make its own otherwise, which takes longer than some requests here."""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--api-key", "one", "two", "--max-num-seqs", "2", "--max-queue", "4") as process:
        yield process


def post(server: ServerProcess, body: dict, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60, verify=TLS)


def num_unfinished(server: ServerProcess) -> float:
    text = httpx.get(f"{server.url}/metrics", headers=ONE, verify=TLS).text
    values = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.M)
    assert values, text
    return sum(map(float, values))


def wait_for_unfinished(server: ServerProcess, number: int) -> None:
    deadline = time.monotonic() + 20
    while num_unfinished(server) != number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_flooded_server_answers_everybody(server: ServerProcess) -> None:
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(pool.map(lambda _: post(server, LONG, ONE), range(NUM_CLIENTS)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "queue_full"
    wait_for_unfinished(server, 0)
    assert post(server, BODY, ONE).status_code == 200


def test_a_newcomer_need_not_wait_for_another_tenants_seats(server: ServerProcess) -> None:
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(post, server, LONG | {"max_tokens": 900}, ONE) for _ in range(4)]
        wait_for_unfinished(server, 4)
        assert post(server, BODY | {"max_tokens": 1}, TWO).status_code == 200
        assert not any(answer.done() for answer in taken)
        assert {answer.result().status_code for answer in taken} == {200}
        assert len({answer.result().json()["choices"][0]["text"] for answer in taken}) == 1


def test_no_key_finds_the_prompts_of_another_in_the_cache(server: ServerProcess) -> None:
    body = BODY | {"prompt": "Once there was a secret that nobody knew. " * 10, "max_tokens": 1}

    def num_cached(headers: dict[str, str]) -> int:
        usage = post(server, body, headers).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert num_cached(ONE) == 0
    assert num_cached(ONE) > 0
    assert num_cached(TWO) == 0


def test_a_time_limit_frees_what_it_ends(server: ServerProcess) -> None:
    endless = BODY | {"prompt": [BODY["prompt"]] * 4, "max_tokens": 900}
    answer = post(server, endless, ONE | {"X-Request-Timeout": "0.3"})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    wait_for_unfinished(server, 0)
