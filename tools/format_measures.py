"""What docs/models.md says of a quantized checkpoint format, measured on Llamas and Mixtrals with random weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from quire import LLM, SamplingParams
from quire.executor.local import LocalExecutor
from quire.loader import load_model
from quire.loader.load import weight_bytes
from quire.models.proven import Entry
from tests.models.checkpoints import draw_prompts, make_model, save, weights_of
from tests.models.drive import Driver, Job, make_config
from tests.quant.fixtures import Fixture

SMALL = dict(hidden_size=256, intermediate_size=768, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
LARGE = dict(hidden_size=1024, intermediate_size=2816, num_attention_heads=8, num_key_value_heads=4, head_dim=128)
LARGE |= dict(num_hidden_layers=3, vocab_size=4096)
"""Large enough that the time of a token is that of reading the weights."""
WITHOUT_BIASES = dict(attention_bias=False, mlp_bias=False)
EXPERTS = dict(num_local_experts=6, num_experts_per_tok=2)
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama-mha-biases-untied": (SMALL | WITHOUT_BIASES, LARGE | WITHOUT_BIASES),
    "mixtral-gqa": (SMALL | EXPERTS | dict(intermediate_size=256), LARGE | EXPERTS | dict(intermediate_size=768)),
}
"""By a fixture's shape: the small and the large model."""
NUM_NEW_TOKENS, NUM_RUNS = 32, 3
NUM_LOADS = 4
"""On a virtual machine some pages are read almost twice as fast as others: of several loads, each has its best."""


def measure(fixture: Fixture, folder: Path) -> Entry:
    """The entry of `proven.json`."""
    torch.set_num_threads(1)
    return {"tool": fixture.tool} | _exactness(fixture, folder / "small") | _size_and_speed(fixture, folder / "large")


def _model(fixture: Fixture, is_large: bool) -> Any:
    """A model without biases, of which a layer's outputs are about as large as its inputs."""
    changes = CHANGES[fixture.shape][is_large]
    return make_model(fixture.shape, initializer_range=changes["hidden_size"] ** -0.5, **changes)


def _exactness(fixture: Fixture, folder: Path) -> Entry:
    """Weights against those that the tool's own code dequantizes, and log probabilities against transformers with them."""
    model = _model(fixture, is_large=False)
    quantized = fixture.make(model, folder / "quantized")
    dequantized = save(model, folder / "dequantized")
    found, expected = (_weights(path) for path in (quantized, dequantized))
    assert found.keys() == expected.keys()
    differing = [name for name in found if not torch.equal(found[name], expected[name])]
    error = max(float((found[name] - expected[name]).abs().max()) for name in found)
    return {
        "weights": len(found),
        "weights_equal": len(found) - len(differing),
        "max_weight_error": error,
        "max_logprob_error": _logprob_error(model, quantized),
    }


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """All parameters of the checkpoint as Quire has them."""
    config = make_config(path)
    model = load_model(config.model, config.load, torch.device("cpu"))
    return {name: tensor.float() for name, tensor in weights_of(model).items()}


def _logprob_error(model: Any, path: Path) -> float:
    """The largest difference over the tokens of a few prompts."""
    prompts = draw_prompts(6, 60)[2:]
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    jobs = [Job(f"r{i}", prompt, params) for i, prompt in enumerate(prompts)]
    Driver(LocalExecutor(make_config(path))).run(jobs)
    error = 0.0
    for job in jobs:
        with torch.inference_mode():
            rows = model(torch.tensor([job.prompt])).logits[0].float().log_softmax(-1)
        mine = torch.tensor([entry.logprobs[0] for entry in job.prompt_logprobs])
        theirs = rows[:-1].gather(1, torch.tensor(job.prompt[1:]).unsqueeze(1)).squeeze(1)
        error = max(error, float((mine - theirs).abs().max()))
    return error


def _size_and_speed(fixture: Fixture, folder: Path) -> Entry:
    """Memory of the weights against the checkpoint's files; tokens per second of one request against bfloat16 weights. Both with
    the options' defaults, the dtype among them.
    """
    model = _model(fixture, is_large=True).bfloat16()  # and so what is not quantized is the same in both
    bfloat16 = save(model, folder / "bfloat16")
    quantized = fixture.make(model, folder / "quantized")
    shared: dict[str, Any] = dict(skip_tokenizer_init=True, max_model_len=128, num_gpu_blocks_override=64)
    times = []
    for _ in range(NUM_LOADS):
        with LLM(str(quantized), **shared) as llm, LLM(str(bfloat16), **shared) as other:
            memory = weight_bytes(llm.llm_engine.core.executor._worker.model)
            times += _decode_times(llm, other)
    speed = min(theirs for _, theirs in times) / min(ours for ours, _ in times)
    return {"memory_of_file": memory / _file_bytes(quantized), "speed_of_bfloat16": speed}


def _file_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin", "*.gguf") for file in path.glob(pattern))


def _decode_times(first: LLM, second: LLM) -> list[tuple[float, float]]:
    """Measured in turn, so that what else the machine does meets both."""
    return [(_decode_time(first), _decode_time(second)) for _ in range(NUM_RUNS + 1)][1:]


def _decode_time(llm: LLM) -> float:
    params = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate([{"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=False)
    return time.perf_counter() - start
