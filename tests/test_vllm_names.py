"""Calls as they stand in documents about vLLM, with the package's name changed: they run, or say what is to come."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from quire import LLM, AsyncLLMEngine, EngineArgs, LLMEngine, ModelRegistry, SamplingParams
from quire.errors import HubError, ModelLoadError, NotSupportedError
from tests.engine.fakes import write_byte_tokenizer
from tests.engine.test_async_engine import collect

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 260,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "eos_token_id": 257,
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A checkpoint folder that the simulated executor can run."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(write_byte_tokenizer(tmp_path))


SIMULATED = {"distributed_executor_backend": "simulated"}


def test_offline_batch(model):
    llm = LLM(
        model=model, gpu_memory_utilization=0.9, max_num_seqs=256, max_num_batched_tokens=2048, **SIMULATED
    )
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=20)
    prompts = ["Hello, my name is", "The capital of France is", "The future of AI is"]
    for prompt, output in zip(prompts, llm.generate(prompts, sampling_params), strict=True):
        assert output.prompt == prompt
        assert f"Generated: {output.outputs[0].text}" and len(output.outputs[0].token_ids) <= 20


def test_one_prompt_with_a_progress_bar(model, capsys):
    outputs = LLM(model, **SIMULATED).generate("你好", SamplingParams(max_tokens=5), use_tqdm=True)
    for output in outputs:
        print(output, end="", flush=True)
    assert "RequestOutput(request_id=" in capsys.readouterr().out


def test_every_sampling_option_of_the_documents(model):
    params = SamplingParams(
        n=1, temperature=0.8, top_p=0.95, top_k=40, frequency_penalty=0.1, presence_penalty=0.1, max_tokens=16,
        stop=["</s>"], logprobs=5, prompt_logprobs=5,
    )  # fmt: skip
    (output,) = LLM(model, **SIMULATED).generate("Hello", params)
    assert len(output.outputs[0].logprobs) == len(output.outputs[0].token_ids)
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_streaming_parameter(model):
    stream = LLM(model, **SIMULATED).generate(
        "Hello", SamplingParams(temperature=0.7, max_tokens=8, stream=True)
    )
    assert [output.finished for output in stream].count(True) == 1


def test_llm_engine(model):
    args = EngineArgs(
        model=model, tensor_parallel_size=1, pipeline_parallel_size=1, gpu_memory_utilization=0.95, max_num_seqs=128,
        max_num_batched_tokens=4096, block_size=16, swap_space=4, disable_log_stats=False, **SIMULATED,
    )  # fmt: skip
    engine = LLMEngine.from_engine_args(args)
    engine.add_request("0", "Hello", SamplingParams(max_tokens=4))
    seen = []
    while engine.has_unfinished_requests():
        seen += engine.step()
    assert seen[-1].finished


def test_async_engine(model):
    engine = AsyncLLMEngine.from_engine_args(EngineArgs(model=model, **SIMULATED))

    async def main() -> None:
        outputs = await collect(engine.generate("Hello", SamplingParams(max_tokens=4), "0"))
        assert outputs[-1].finished
        await engine.shutdown()

    asyncio.run(main())


def test_engine_args_of_the_documents():
    args = EngineArgs(
        model="model-name", tokenizer="tokenizer-name", revision="main", tokenizer_revision="main",
        trust_remote_code=True, download_dir="/path/to/cache", load_format="auto", seed=42, max_model_len=4096,
        worker_use_ray=False, disable_custom_all_reduce=False, enforce_eager=False, max_context_len_to_capture=8192,
    )  # fmt: skip
    assert args.seed == 42


@pytest.mark.parametrize("dtype", ["half", "float16", "bfloat16", "float32", "auto"])
def test_dtypes(model, dtype):
    assert LLM(model, dtype=dtype, cpu_offload_gb=8, enable_prefix_caching=True, **SIMULATED).llm_engine


@pytest.mark.parametrize(
    "options",
    [
        {"quantization": "marlin", "dtype": "half"},
        {"tensor_parallel_size": 4},
        {"speculative_model": "other", "num_speculative_tokens": 5, "use_v2_block_manager": True},
        {"enable_lora": True, "lora_modules": [("adapter1", "/path/to/adapter1")]},
    ],
)
def test_what_is_not_built_yet_says_so_before_anything_is_loaded(options):
    with pytest.raises(NotSupportedError, match="not supported yet"):
        LLM(model="/path/that/is/not/there", **options)


def test_missing_folder():
    with pytest.raises(ModelLoadError, match="/path/to/local/model"):
        LLM(model="/path/to/local/model")


def test_hub_errors_are_hub_errors(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="cache"):
        LLM(model="owner/model", download_dir=str(tmp_path))


def test_supported_architectures():
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM"} <= set(ModelRegistry.get_supported_archs())


def test_the_built_in_model():
    folder = Path(__file__).resolve().parents[1] / "quire" / "builtin" / "folio"
    if not (folder / "model.safetensors").exists():
        pytest.skip("needs the built-in model, which is not in this tree")
    (output,) = LLM(kv_cache_memory="64M", max_model_len=512).generate("Hello", SamplingParams(max_tokens=4))
    assert output.outputs[0].token_ids
