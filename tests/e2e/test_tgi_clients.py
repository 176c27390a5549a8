"""`huggingface_hub`, `text-generation` and a generated gRPC stub against a real server that `quire launcher` started."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

from tests.e2e.conftest import TEMPLATE
from tests.e2e.server_process import ServerProcess

STORY = "Once upon a time"
BEGINNING = ", there was a little girl named"
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def tgi(model_path: str) -> Iterator[ServerProcess]:
    """A server with TGI's flags, which also speaks gRPC."""
    process = ServerProcess(
        "--model-id", model_path, "--hostname", "127.0.0.1", "--max-total-tokens", "256", "--max-best-of", "3",
        "--chat-template", TEMPLATE, "--grpc-port", "0", "--num-threads", "1", command=["quire", "launcher"],
    )  # fmt: skip
    yield process
    process.kill()


# -- huggingface_hub -----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tgi: ServerProcess) -> Iterator[InferenceClient]:
    with InferenceClient(tgi.url, timeout=60) as client:
        yield client


def test_hub_text(hub: InferenceClient) -> None:
    assert hub.text_generation(STORY, max_new_tokens=10).startswith(BEGINNING[:20])
    full = hub.text_generation(STORY, max_new_tokens=10, return_full_text=True)
    assert full.startswith(STORY + BEGINNING[:20])


def test_hub_details(hub: InferenceClient) -> None:
    answer = hub.text_generation(
        STORY, max_new_tokens=12, details=True, decoder_input_details=True, top_n_tokens=3
    )
    details = answer.details
    assert details is not None and details.top_tokens is not None
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("length", 12, None)
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert [len(top) for top in details.top_tokens] == [3] * 12
    for token, top in zip(details.tokens, details.top_tokens):
        best: Any = top[0]  # the package leaves lists of lists as they came
        assert (token.id, token.logprob) == (best["id"], best["logprob"])  # greedy
    assert details.prefill[0].logprob is None and all(each.logprob < 0 for each in details.prefill[1:])


def test_hub_stream(hub: InferenceClient) -> None:
    whole = hub.text_generation(STORY, max_new_tokens=20)
    assert "".join(hub.text_generation(STORY, max_new_tokens=20, stream=True)) == whole
    events = list(hub.text_generation(STORY, max_new_tokens=20, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, 21))
    assert "".join(event.token.text for event in events) == events[-1].generated_text == whole
    assert events[-1].details is not None and events[-1].details.input_length > 2
    assert all(event.details is None and event.generated_text is None for event in events[:-1])


def test_hub_stop_and_seed(hub: InferenceClient) -> None:
    stopped = hub.text_generation(STORY, max_new_tokens=100, stop=["girl"], details=True)
    assert stopped.generated_text.endswith("girl")
    assert stopped.details is not None and stopped.details.finish_reason == "stop_sequence"
    drawn = {hub.text_generation(STORY, max_new_tokens=20, temperature=1.0, seed=5) for _ in range(3)}
    assert len(drawn) == 1


def test_hub_chat(hub: InferenceClient) -> None:
    whole = hub.chat_completion(MESSAGES, max_tokens=16, temperature=0)
    chunks = hub.chat_completion(MESSAGES, max_tokens=16, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert whole.choices[0].message.content == "".join(pieces) != ""
    assert whole.usage.completion_tokens == 16


def test_hub_errors(hub: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="top_p"):
        hub.text_generation(STORY, top_p=1.5)
    with pytest.raises(ValidationError, match="maximum context length is 256"):
        list(hub.text_generation(STORY * 200, stream=True))


# -- text-generation -----------------------------------------------------------------------------------------

# The package calls what pydantic has renamed.
needs_no_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def text_generation() -> Any:
    return pytest.importorskip(
        "text_generation", reason="installed by `make test`: tests/requirements-no-deps.txt"
    )


@needs_no_warnings
def test_client_generate(text_generation: Any, tgi: ServerProcess) -> None:
    client = text_generation.Client(tgi.url, timeout=60)
    answer = client.generate(STORY, max_new_tokens=12, decoder_input_details=True)
    assert answer.generated_text.startswith(BEGINNING[:20])
    assert answer.details.finish_reason == "length" and len(answer.details.tokens) == 12
    assert answer.details.prefill[0].logprob is None
    several = client.generate(STORY, max_new_tokens=8, do_sample=True, best_of=3, top_n_tokens=2)
    assert len(several.details.best_of_sequences) == 2
    means = [
        sum(token.logprob for token in sequence.tokens) / len(sequence.tokens)
        for sequence in (several.details, *several.details.best_of_sequences)
    ]
    assert means == sorted(means, reverse=True)


@needs_no_warnings
def test_client_stream(text_generation: Any, tgi: ServerProcess) -> None:
    client = text_generation.Client(tgi.url, timeout=60)
    events = list(client.generate_stream(STORY, max_new_tokens=12))
    text = "".join(event.token.text for event in events if not event.token.special)
    assert text == events[-1].generated_text == client.generate(STORY, max_new_tokens=12).generated_text
    assert events[-1].details.generated_tokens == 12


@needs_no_warnings
def test_client_chat(text_generation: Any, tgi: ServerProcess) -> None:
    """Whole answers: the package's reader of chat streams fails on any stream that OpenAI's clients can read."""
    answer = text_generation.Client(tgi.url, timeout=60).chat(messages=MESSAGES, max_tokens=8)
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content


@needs_no_warnings
def test_client_errors(text_generation: Any, tgi: ServerProcess) -> None:
    errors = importlib.import_module("text_generation.errors")
    client = text_generation.Client(tgi.url, timeout=60)
    with pytest.raises(errors.ValidationError, match="must be <= 256"):
        client.generate(STORY, max_new_tokens=5000)
    with pytest.raises(errors.ValidationError, match="maximum context length is 256"):
        list(client.generate_stream("a b c " * 300))


@needs_no_warnings
async def test_async_client(text_generation: Any, tgi: ServerProcess) -> None:
    client = text_generation.AsyncClient(tgi.url, timeout=60)
    whole = await client.generate(STORY, max_new_tokens=12)
    events = [event async for event in client.generate_stream(STORY, max_new_tokens=12)]
    assert events[-1].generated_text == whole.generated_text
    answer = await client.chat(messages=MESSAGES, max_tokens=8)
    assert answer.choices[0].message.content
    errors = importlib.import_module("text_generation.errors")
    with pytest.raises(errors.ValidationError):
        await client.generate(STORY, max_new_tokens=5000)


# -- the rest ------------------------------------------------------------------------------------------------


def test_limits_and_metrics(tgi: ServerProcess) -> None:
    info = requests.get(f"{tgi.url}/info", timeout=10).json()
    assert (info["max_total_tokens"], info["max_best_of"]) == (256, 3)
    before = _metrics(tgi)
    body = {"inputs": STORY, "parameters": {"max_new_tokens": 7}}
    answer = requests.post(f"{tgi.url}/generate", json=body, timeout=60)
    after = _metrics(tgi)
    assert answer.headers["x-generated-tokens"] == "7"
    assert after["tgi_request_success"] == before["tgi_request_success"] + 1
    assert after["tgi_request_generated_tokens_sum"] == before["tgi_request_generated_tokens_sum"] + 7
    assert after["llamacpp:tokens_predicted_total"] == before["llamacpp:tokens_predicted_total"] + 7
    assert after["llamacpp:n_decode_total"] >= before["llamacpp:n_decode_total"]
    assert after["tgi_batch_current_size"] == after["tgi_queue_size"] == 0


def _metrics(server: ServerProcess) -> dict[str, float]:
    lines = requests.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name[0] != "#"}


def test_a_grpc_client(tgi: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grpc = pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    proto = Path(__file__).parents[2] / "quire/server/grpc/quire.proto"
    words = ["protoc", f"-I{proto.parent}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", proto.name]
    assert protoc.main(words) == 0
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("quire_pb2", "quire_pb2_grpc"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    pb, stubs = importlib.import_module("quire_pb2"), importlib.import_module("quire_pb2_grpc")
    address = re.search(r"gRPC on (\S+)", "".join(tgi.out))
    assert address is not None
    with grpc.insecure_channel(address[1]) as channel:
        stub = stubs.InferenceStub(channel)
        request = pb.GenerateRequest(text=STORY, sampling={"max_tokens": 12, "temperature": 0})
        whole = stub.Generate(request, timeout=60).sequences[0]
        pieces = [answer.sequences[0].text for answer in stub.GenerateStream(request, timeout=60)]
        assert whole.text == "".join(pieces) and whole.text.startswith(BEGINNING[:20])
        endless = stub.GenerateStream(
            pb.GenerateRequest(text=STORY, sampling={"n": 64, "ignore_eos": True}), timeout=60
        )
        next(endless)
        endless.cancel()
        with pytest.raises(grpc.RpcError) as failed:
            stub.Generate(pb.GenerateRequest(text=STORY, sampling={"n": 64, "ignore_eos": True}), timeout=0.05)
        assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert stub.Info(pb.InfoRequest(), timeout=10).models[0].max_model_len == 256
        stub.Health(pb.HealthRequest(), timeout=10)
