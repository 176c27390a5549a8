"""Programs and commands as users wrote them for vLLM, with the package's name changed, on a small real model.

What needs no weights is in `test_vllm_names.py`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import requests

import quire
from quire import LLM, AsyncLLMEngine, EngineArgs, LLMEngine, SamplingParams
from quire.engine import metrics
from quire.entrypoints.openai import serve_openai_api
from quire.errors import NotSupportedError
from quire.model_executor.models import ModelRegistry
from quire.tokenizer import render_chat
from tests.e2e.server_process import ServerProcess
from tests.shared_data import shared

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
STORY = "Once upon a time"
BEGINNING = ", there was a little girl named"


@pytest.fixture(scope="module")
def path() -> str:
    return str(shared("models/stories260K"))


@pytest.fixture(scope="module")
def llm(path: str) -> Iterator[LLM]:
    """One model, loaded with all the memory and batching options that users give."""
    with LLM(
        path, tokenizer=path, dtype="half", gpu_memory_utilization=0.95, max_model_len=512, block_size=16, swap_space=4,
        max_num_seqs=256, max_num_batched_tokens=2048, tensor_parallel_size=1, pipeline_parallel_size=1,
        enable_prefix_caching=True, enforce_eager=False, revision="main", tokenizer_revision="main",
        trust_remote_code=True, download_dir="~/.cache/huggingface", disable_log_stats=False, num_threads=1,
    ) as llm:  # fmt: skip
        yield llm


@pytest.fixture(scope="module")
def server(path: str) -> Iterator[ServerProcess]:
    """The OpenAI server by its old module path, with the flags of a deployment."""
    process = ServerProcess(
        "--model", path, "--served-model-name", "stories", "--dtype", "float16", "--max-model-len", "512",
        "--gpu-memory-utilization", "0.95", "--max-num-seqs", "128", "--tensor-parallel-size", "1",
        "--pipeline-parallel-size", "1", "--chat-template", TEMPLATE, "--num-threads", "1",
        command=["quire.entrypoints.openai.api_server"],
    )  # fmt: skip
    yield process
    process.kill()


# -- in Python -----------------------------------------------------------------------------------------------


def test_the_package_has_a_version() -> None:
    assert quire.__version__.count(".") == 2


def test_a_batch_of_prompts(llm: LLM) -> None:
    prompts = [STORY, "The little dog", "请介绍一下你自己"]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.8, top_p=0.95, max_tokens=6))
    assert [output.prompt for output in outputs] == prompts
    assert all(len(output.outputs[0].token_ids) == 6 and output.outputs[0].text for output in outputs)


def test_many_prompts_without_parameters(llm: LLM) -> None:
    assert len(llm.generate(["Hello world"] * 40, SamplingParams(max_tokens=2))) == 40
    assert llm.generate(STORY)[0].finished


def test_every_sampling_option(llm: LLM) -> None:
    params = SamplingParams(
        n=1, temperature=0.8, top_p=0.95, top_k=40, frequency_penalty=0.1, presence_penalty=0.1, max_tokens=6,
        stop=["</s>", "\n\n"], logprobs=5, prompt_logprobs=5,
    )  # fmt: skip
    (output,) = llm.generate(STORY, params)
    assert len(output.outputs[0].logprobs) == 6
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_streaming_by_parameter(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, stream=True)
    texts = [output.outputs[0].text for output in llm.generate(STORY, params)]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert texts[-1].startswith(BEGINNING[:20])


def test_outputs_are_lists_that_print(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    for output in llm.generate(STORY, SamplingParams(max_tokens=2), use_tqdm=True):
        print(output, end="", flush=True)
    assert STORY in capsys.readouterr().out


def test_a_conversation_becomes_a_prompt(llm: LLM) -> None:
    messages = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": STORY},
    ]
    prompt = render_chat(llm.get_tokenizer(), messages, chat_template=TEMPLATE)
    assert prompt == f"Hello! Hi! {STORY} "
    greedy = SamplingParams(temperature=0, max_tokens=4)
    (answer,) = llm.chat(messages, greedy, chat_template=TEMPLATE)
    assert answer.prompt == prompt and answer.outputs[0].text


def test_numbers_of_the_engine(llm: LLM) -> None:
    numbers = {metric.name: metric for metric in llm.get_metrics()}
    assert isinstance(numbers["quire:num_running"], metrics.Gauge)
    assert isinstance(numbers["quire:requests_total"], metrics.Counter)
    assert importlib.import_module("quire.engine.metrics") is metrics


def test_engines_by_hand(path: str) -> None:
    args = EngineArgs(model=path, max_num_seqs=8, num_threads=1)
    engine = LLMEngine.from_engine_args(args)
    engine.add_request("story", STORY, SamplingParams(temperature=0, max_tokens=8))
    last = None
    while engine.has_unfinished_requests():
        last = engine.step()[-1]
    assert last is not None and last.finished

    async def stream() -> str:
        engine = AsyncLLMEngine.from_engine_args(args)
        async for output in engine.generate(STORY, SamplingParams(temperature=0, max_tokens=8), "story"):
            text: str = output.outputs[0].text
        await engine.shutdown()
        return text

    assert asyncio.run(stream()) == last.outputs[0].text


def test_whether_a_checkpoint_is_supported(path: str) -> None:
    with open(f"{path}/config.json") as file:
        architecture = json.load(file)["architectures"][0]
    assert architecture in ModelRegistry.get_supported_archs()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"])
def test_tokens_of_the_environment_reach_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: dict[str, Any] = {}

    def download(model: str, **options: Any) -> str:
        seen.update(options, model=model)
        return path

    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors")])
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: listing)
    for other in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "hf_secret")
    config = EngineArgs(model="owner/private", revision="main", trust_remote_code=True).create_engine_config()
    assert config.model.path == path
    assert (seen["model"], seen["token"], seen["revision"]) == ("owner/private", "hf_secret", "main")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tensor_parallel_size", 4),
        ("pipeline_parallel_size", 2),
        ("speculative_model", "owner/draft"),
        ("enable_lora", True),
        ("worker_use_ray", True),
    ],
)
def test_what_is_to_come_says_its_name_and_value(option: str, value: Any) -> None:
    with pytest.raises(NotSupportedError, match=f"not supported yet: {option}={value!r}"):
        LLM("/no/such/folder", **{option: value})


def test_serving_from_python(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    started: list[Any] = []
    monkeypatch.setattr("quire.server.run.run_server", lambda *args: started.extend(args))
    serve_openai_api(model=path, host="0.0.0.0", port=8000, max_num_seqs=4, api_key="key")
    engine_args, server_args = started
    assert (engine_args.model, engine_args.max_num_seqs) == (path, 4)
    assert (server_args.host, server_args.port, server_args.api_key) == ("0.0.0.0", 8000, "key")


# -- over HTTP -----------------------------------------------------------------------------------------------


def test_plain_requests(server: ServerProcess) -> None:
    body = {"model": "stories", "prompt": STORY, "max_tokens": 10, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{server.url}/v1/completions", headers=headers, data=json.dumps(body), timeout=60)
    assert answer.json()["choices"][0]["text"].startswith(BEGINNING[:20])


def test_the_present_client(server: ServerProcess) -> None:
    messages: Any = [{"role": "system", "content": "Tell stories."}, {"role": "user", "content": "Hello"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="token-abc123", timeout=60) as client:
        whole = client.chat.completions.create(
            model="stories", messages=messages, temperature=0, max_tokens=8
        )
        stream = client.chat.completions.create(
            model="stories", messages=messages, temperature=0, max_tokens=8, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert whole.choices[0].message.content == "".join(pieces) != ""


def test_what_the_client_of_old_sends_and_reads(server: ServerProcess) -> None:
    """`openai.ChatCompletion` of openai 0.x on the wire: its headers, and deltas read as dicts."""
    body = {"model": "stories", "messages": [{"role": "user", "content": "Count"}], "max_tokens": 4}
    headers = {
        "Authorization": "Bearer EMPTY",
        "User-Agent": "OpenAI/v1 PythonBindings/0.28.1",
        "X-OpenAI-Client-User-Agent": "{}",
    }
    url = f"{server.url}/v1/chat/completions"
    whole = requests.post(url, json=body, headers=headers, timeout=60).json()
    assert whole["object"] == "chat.completion" and whole["choices"][0]["message"]["content"]
    with requests.post(url, json=body | {"stream": True}, headers=headers, stream=True, timeout=60) as answer:
        events = [line.removeprefix(b"data: ") for line in answer.iter_lines() if line]
    assert events[-1] == b"[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas)


def test_the_streaming_loop_of_tgis_users(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{server.url}/generate_stream"
    headers = {"Content-Type": "application/json"}
    data = {
        "inputs": "Once upon a time",
        "parameters": {"max_new_tokens": 100, "temperature": 0.7, "top_p": 0.9, "do_sample": True},
    }
    response = requests.post(url, json=data, headers=headers, stream=True, timeout=60)
    for line in response.iter_lines():
        if line:
            decoded = line.decode("utf-8")
            if decoded.startswith("data:"):
                json_data = json.loads(decoded[5:])
                print(json_data["token"]["text"], end="", flush=True)
    printed = capsys.readouterr().out
    assert len(printed) > 20
    assert printed.startswith(json_data["generated_text"])  # a token that ends the text is printed after it


def test_the_variables_of_tgis_containers(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"MODEL_ID": path, "NUM_SHARD": "1", "MAX_INPUT_LENGTH": "64", "MAX_TOTAL_TOKENS": "128", "DTYPE": "float16"}
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with ServerProcess("--num-threads", "1") as server:
        info = requests.get(f"{server.url}/info", timeout=10).json()
        assert (info["model_id"], info["max_input_tokens"], info["max_total_tokens"]) == (path, 64, 128)
        answer = requests.post(f"{server.url}/generate", json={"inputs": "a b " * 60}, timeout=10)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_models_health_and_metrics(server: ServerProcess) -> None:
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    models = requests.get(f"{server.url}/v1/models", timeout=10).json()
    assert [card["id"] for card in models["data"]] == ["stories"]
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    for name in (
        "vllm:num_requests_running",
        "vllm:time_to_first_token_seconds_count",
        "vllm:kv_cache_usage_perc",
    ):
        assert f"{name}{{" in text
