"""gRPC over the mock engine, through a client that protoc generates from quire.proto."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire.errors import BusyError, ConfigError, QueueFullError
from quire.server import tls
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.context import ServerContext
from quire.server.grpc import check_grpc, serving_grpc
from tests.server.certificates import Identity, make_identity
from tests.server.mock_engine import MAX_MODEL_LEN, MockEngine
from tests.server.traces import Traces

grpc = pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
health_pb2_grpc = pytest.importorskip("grpc_health.v1.health_pb2_grpc")

PROTO = Path(__file__).parents[2] / "quire/server/grpc/quire.proto"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """What a user's protoc makes of the file: (messages, stubs)."""
    folder = tmp_path_factory.mktemp("generated")
    words = ["protoc", f"-I{PROTO.parent}", f"--python_out={folder}", f"--grpc_python_out={folder}", PROTO.name]
    assert protoc.main(words) == 0
    sys.path.insert(0, str(folder))
    yield importlib.import_module("quire_pb2"), importlib.import_module("quire_pb2_grpc")
    sys.path.remove(str(folder))


class Served:
    """A gRPC server in this event loop, and a client of it."""

    def __init__(self, generated: tuple[Any, Any], engine: MockEngine, context: ServerContext, port: int) -> None:
        self.pb = generated[0]
        self.engine = engine
        self.context = context
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = generated[1].InferenceStub(self.channel)

    def request(self, text: str = "ab", **fields: Any) -> Any:
        """A request for a few tokens."""
        sampling = {"max_tokens": 4} | fields.pop("sampling", {})
        return self.pb.GenerateRequest(text=text, sampling=sampling, **fields)

    async def settle(self) -> None:
        """Wait until the engine runs nothing."""
        for _ in range(500):
            if not self.engine.running:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"still running: {self.engine.running}")


@pytest.fixture
def engine() -> MockEngine:
    return MockEngine(joins_characters=True)


@pytest.fixture
def server_args() -> dict[str, Any]:
    return {}


@pytest.fixture
async def served(
    generated: tuple[Any, Any],
    engine: MockEngine,
    server_args: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> AsyncIterator[Served]:
    context = build_app(engine, ServerArgs(grpc_port=0, **server_args)).state.context
    async with serving_grpc(context):
        port = int(capsys.readouterr().out.strip().rsplit(":", 1)[1])
        served = Served(generated, engine, context, port)
        async with served.channel:
            yield served


async def fails(call: Any, code: Any, names: str = "") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.code() == code
    assert names in failed.value.details()


# -- answers -------------------------------------------------------------------------------------------------


async def test_a_whole_answer(served: Served) -> None:
    answer = await served.stub.Generate(served.request())
    (sequence,) = answer.sequences
    assert (sequence.index, sequence.text, list(sequence.token_ids)) == (0, "abab", [97, 98, 97, 98])
    assert sequence.finish_reason == served.pb.FINISH_REASON_LENGTH
    assert (answer.usage.prompt_tokens, answer.usage.output_tokens) == (3, 4)
    assert not sequence.logprobs


async def test_a_stream(served: Served) -> None:
    answers = [answer async for answer in served.stub.GenerateStream(served.request("né"))]
    assert "".join(answer.sequences[0].text for answer in answers) == "nén"
    assert [answer.HasField("usage") for answer in answers] == [False, False, False, True]
    assert answers[-1].usage.output_tokens == 4
    reasons = [answer.sequences[0].finish_reason for answer in answers]
    assert reasons == [0, 0, 0, served.pb.FINISH_REASON_LENGTH]


async def test_several_sequences_and_logprobs(served: Served) -> None:
    answer = await served.stub.Generate(served.request(sampling={"n": 2, "max_tokens": 1}, logprobs=2))
    assert [sequence.index for sequence in answer.sequences] == [0, 1]
    (position,) = answer.sequences[1].logprobs
    assert (position.chosen.token_id, position.chosen.text, position.chosen.logprob) == (97, "a", -0.5)
    assert [each.text for each in position.likeliest] == ["a", "X"]
    (position,) = (await served.stub.Generate(served.request(sampling={"max_tokens": 1}, logprobs=0))).sequences[0].logprobs
    assert (position.chosen.text, len(position.likeliest)) == ("a", 0)


async def test_the_stop_text_is_reported(served: Served) -> None:
    answer = await served.stub.Generate(served.request("abc", sampling={"stop": ["bc"], "include_stop": True}))
    (sequence,) = answer.sequences
    assert (sequence.text, sequence.stop, sequence.finish_reason) == ("abc", "bc", served.pb.FINISH_REASON_STOP)


async def test_every_form_of_a_prompt(served: Served) -> None:
    await served.stub.Generate(served.pb.GenerateRequest(token_ids={"ids": [97, 98]}))
    messages = [{"role": "user", "content": "hi"}]
    await served.stub.Generate(served.pb.GenerateRequest(conversation={"messages": messages}))
    assert [seen[0] for seen in served.engine.seen] == [[97, 98], list(b"<user>hi<assistant>")]
    assert served.engine.seen[0][1].max_tokens is None


async def test_parameters_reach_the_engine(served: Served) -> None:
    given = {
        "n": 2, "max_tokens": 3, "min_tokens": 1, "temperature": 0.0, "top_p": 0.5, "top_k": 4, "min_p": 0.1,
        "typical_p": 0.9, "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 7,
        "stop": ["x"], "stop_token_ids": [9], "ignore_eos": True, "logit_bias": {5: 1.5},
    }  # fmt: skip
    fields = {field.name for field in served.pb.SamplingParams.DESCRIPTOR.fields}
    assert fields == {*given, "include_stop"}
    await served.stub.Generate(served.request(sampling=given, priority=3, cache_salt="salt", model="alias/two"))
    _, params, priority, cache_salt = served.engine.seen[0]
    assert {name: getattr(params, name) for name in given} == given
    assert (priority, cache_salt) == (3, "salt")


async def test_info_and_health(served: Served) -> None:
    info = await served.stub.Info(served.pb.InfoRequest())
    assert [(model.name, model.max_model_len) for model in info.models] == [("mock", 64), ("alias/two", 64)]
    await served.stub.Health(served.pb.HealthRequest())
    standard = health_pb2_grpc.HealthStub(served.channel)
    for service in ("", "quire.v1.Inference"):
        answer = await standard.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await fails(standard.Check(health_pb2.HealthCheckRequest(service="x")), grpc.StatusCode.NOT_FOUND)
    served.engine.is_dead = True
    answer = await standard.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await fails(served.stub.Health(served.pb.HealthRequest()), grpc.StatusCode.UNAVAILABLE)
    await fails(served.stub.Generate(served.request()), grpc.StatusCode.UNAVAILABLE)


# -- errors and ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"text": ""}, "text"),
        ({"text": "x" * MAX_MODEL_LEN}, "text"),
        ({"text": "x" * 100_000}, "maximum context length"),
        ({"sampling": {"temperature": -1.0}}, "temperature"),
        ({"sampling": {"n": 0}}, "n must be"),
        ({"sampling": {"stop_token_ids": [5000]}}, "stop_token_ids"),
        ({"logprobs": 1000}, "logprobs"),
    ],
)
async def test_broken_rules(served: Served, fields: dict[str, Any], names: str) -> None:
    request = served.request(**fields)
    await fails(served.stub.Generate(request), grpc.StatusCode.INVALID_ARGUMENT, names)
    await fails(served.stub.GenerateStream(request).read(), grpc.StatusCode.INVALID_ARGUMENT, names)


async def test_status_codes(served: Served) -> None:
    code = grpc.StatusCode
    await fails(served.stub.Generate(served.pb.GenerateRequest()), code.INVALID_ARGUMENT, "prompt")
    await fails(served.stub.Generate(served.request(model="other")), code.NOT_FOUND, "'other'")
    conversation = {"messages": [{"role": "", "content": "x"}]}
    wrong = served.pb.GenerateRequest(conversation=conversation)
    await fails(served.stub.Generate(wrong), code.INVALID_ARGUMENT, "messages[0].role")
    served.engine.fail_after = 1
    await fails(served.stub.Generate(served.request()), code.INTERNAL, "the worker broke")
    stream = served.stub.GenerateStream(served.request())
    assert (await stream.read()).sequences[0].text == "a"
    await fails(stream.read(), code.INTERNAL, "the worker broke")
    served.context.lifecycle.is_draining = True
    await fails(served.stub.Generate(served.request()), code.UNAVAILABLE, "shutting down")


@pytest.mark.parametrize("server_args", [{"api_key": "one"}])
async def test_api_keys(served: Served) -> None:
    for metadata in (None, [("authorization", "Bearer wrong")], [("x-api-key", "wrong")]):
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        await fails(served.stub.Generate(served.request(), metadata=metadata), unauthenticated, "API key")
        await fails(served.stub.GenerateStream(served.request(), metadata=metadata).read(), unauthenticated)
        await fails(served.stub.Info(served.pb.InfoRequest(), metadata=metadata), unauthenticated)
    assert not served.engine.seen
    await served.stub.Health(served.pb.HealthRequest())
    for metadata in ([("authorization", "Bearer one")], [("x-api-key", "one")]):
        assert (await served.stub.Generate(served.request(), metadata=metadata)).sequences[0].text == "abab"


@pytest.mark.parametrize("server_args", [{"api_key": "one"}])
async def test_no_call_answers_without_a_key_but_health(served: Served) -> None:
    """All that the server knows, found as a client would: in the descriptions that it was made from."""
    methods = [(method.name, method.input_type) for method in served.pb.DESCRIPTOR.services_by_name["Inference"].methods]
    assert len(methods) >= 4
    for name, message in methods:
        answer = getattr(served.stub, name)(getattr(served.pb, message.name)())
        call = answer if hasattr(answer, "__await__") else answer.read()
        if name == "Health":
            await call
        else:
            await fails(call, grpc.StatusCode.UNAUTHENTICATED)
    health = health_pb2_grpc.HealthStub(served.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("must_bring", [False, True])
async def test_certificates_may_be_replaced(
    generated: tuple[Any, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    must_bring: bool,
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.0)
    old, new = make_identity(), make_identity()
    roots = tmp_path / "clients.pem"
    old.authority.cert_pem.write_to_path(roots)
    client = old.authority.issue_cert("client@example.org")
    brought = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    options = old.write(tmp_path) | ({"ssl_ca_certs": str(roots), "ssl_cert_reqs": 2} if must_bring else {})
    context = build_app(MockEngine(), ServerArgs(grpc_port=0, **options)).state.context

    async def works(port: int, identity: Identity, *, brings: bool) -> bool:
        trusted = identity.authority.cert_pem.bytes()
        credentials = grpc.ssl_channel_credentials(trusted, *(brought if brings else (None, None)))
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            try:
                await generated[1].InferenceStub(channel).Health(generated[0].HealthRequest(), timeout=10)
            except grpc.aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                return False
        return True

    async with serving_grpc(context):
        port = int(capsys.readouterr().out.strip().rsplit(":", 1)[1])
        assert await works(port, old, brings=True)
        assert await works(port, old, brings=False) is not must_bring
        assert not await works(port, new, brings=True)
        new.write(tmp_path)
        assert await works(port, new, brings=True)
        assert not await works(port, old, brings=True)


@pytest.mark.parametrize("engine", [MockEngine(step_s=0.02)])
async def test_cancelling_aborts(served: Served) -> None:
    stream = served.stub.GenerateStream(served.request(sampling={"max_tokens": 60}))
    assert (await stream.read()).sequences[0].text == "a"
    whole = served.stub.Generate(served.request(sampling={"max_tokens": 60}))
    while len(served.engine.running) < 2:
        await asyncio.sleep(0.001)
    assert served.context.lifecycle.num_running == 2
    stream.cancel()
    whole.cancel()
    await served.settle()
    assert len(served.engine.aborted) == 2
    assert served.context.lifecycle.num_running == 0


@pytest.mark.parametrize("engine", [MockEngine(step_s=0.02)])
async def test_a_deadline_aborts(served: Served) -> None:
    request = served.request(sampling={"max_tokens": 60})
    await fails(served.stub.Generate(request, timeout=0.2), grpc.StatusCode.DEADLINE_EXCEEDED)
    await served.settle()
    assert len(served.engine.aborted) == 1


@pytest.mark.parametrize(
    ("engine", "server_args"), [(MockEngine(step_s=0.02), {"max_concurrent_requests": 1})]
)
async def test_more_calls_than_the_server_takes(served: Served) -> None:
    first = served.stub.GenerateStream(served.request())
    await first.read()
    await fails(served.stub.Generate(served.request()), grpc.StatusCode.RESOURCE_EXHAUSTED)
    first.cancel()
    await served.settle()


async def refuse(served: Served, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The failure of a call that the engine does not admit."""

    def check(*_: Any) -> None:
        raise error

    monkeypatch.setattr(served.engine, "_check", check)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.stub.Generate(served.request())
    return failed.value


async def test_a_full_queue_says_when_to_come_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = await refuse(served, QueueFullError("4 requests are waiting", retry_after_s=2.5), monkeypatch)
    assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("retry-after", "3") in list(failure.trailing_metadata())
    failure = await refuse(served, BusyError("no room"), monkeypatch)
    assert failure.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("engine", "server_args"), [(MockEngine(step_s=0.02), {"request_timeout": 0.2})])
async def test_the_servers_time_limit(served: Served) -> None:
    long = served.request(sampling={"max_tokens": 60})
    await fails(served.stub.Generate(long), grpc.StatusCode.DEADLINE_EXCEEDED, "within 0.2 s")
    stream = served.stub.GenerateStream(long)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for _ in stream:
            pass
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await served.settle()
    assert len(served.engine.aborted) == 2


@pytest.mark.parametrize("server_args", [{"api_key": ["one", "two"]}])
async def test_each_key_is_a_tenant(served: Served) -> None:
    for key in ("one", "two", "one"):
        await served.stub.Generate(served.request(), metadata=(("authorization", f"Bearer {key}"),))
    first, second, third = served.engine.tenants
    assert first == third != second
    assert [salt for *_, salt in served.engine.seen] == [f"{tenant}/" for tenant in served.engine.tenants]


# -- start-up ------------------------------------------------------------------------------------------------


def test_what_keeps_it_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    check_grpc(ServerArgs())
    check_grpc(ServerArgs(grpc_port=0))
    with pytest.raises(ConfigError, match="grpc_port must be another one than port, got 8000"):
        check_grpc(ServerArgs(grpc_port=8000))
    with pytest.raises(ConfigError, match="api_server_count must be 1 with grpc_port, got 2"):
        check_grpc(ServerArgs(grpc_port=0, api_server_count=2))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*--grpc-port"):
            check_grpc(ServerArgs(grpc_port=port))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'quire\[grpc\]'"):
        check_grpc(ServerArgs(grpc_port=0))


def test_the_compiled_description_is_that_of_the_file(tmp_path: Path) -> None:
    """Run `python -m tools.proto` after a change of quire.proto."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    fresh = tmp_path / "fresh.binpb"
    assert protoc.main(["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={fresh}", PROTO.name]) == 0
    parsed = [
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        for path in (fresh, PROTO.with_suffix(".binpb"))
    ]
    assert parsed[0] == parsed[1]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Stands for a collector; to be asked for before `served`."""
    traces = Traces()
    monkeypatch.setattr("quire.server.context.make_tracer", lambda args: traces)
    return traces


async def test_traces(traces: Traces, served: Served) -> None:
    metadata = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
    await served.stub.Generate(served.request(), metadata=metadata)
    assert [response async for response in served.stub.GenerateStream(served.request())]
    with pytest.raises(grpc.aio.AioRpcError):
        await served.stub.Generate(served.pb.GenerateRequest())
    whole, streamed, refused = traces.spans
    assert traces.parents == [metadata[0][1], "", ""]
    assert whole.name.endswith(".Inference/Generate") and streamed.name.endswith(".Inference/GenerateStream")
    assert [span.attributes["rpc.grpc.status_code"] for span in traces.spans] == [0, 0, 3]
    for span in (whole, streamed):
        assert span.children[0].attributes["gen_ai.usage.output_tokens"] == 4
    assert refused.children == [] and refused.error is None


async def test_the_trace_of_a_call_that_is_cancelled(traces: Traces, served: Served) -> None:
    served.engine.step_s = 0.05
    call = served.stub.GenerateStream(served.request(sampling={"max_tokens": 40}))
    await call.read()
    call.cancel()
    await served.settle()
    async with asyncio.timeout(5):
        while not traces.spans:
            await asyncio.sleep(0.01)
    assert traces.spans[0].attributes["rpc.grpc.status_code"] == 1
    assert traces.spans[0].children[0].attributes["gen_ai.response.finish_reasons"] == ["abort"]
