"""Architectures without a file here run through transformers' classes: equal to transformers itself, and in every schedule to
themselves; what cannot run so is refused with its reason.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from quire.config.engine_args import EngineArgs
from quire.engine.resolve import read_model
from quire.errors import UnsupportedModelError
from quire.executor.local import LocalExecutor
from quire.loader import load_model
from quire.ops import cpu
from tests.equivalence.workload import assert_same
from tests.models.checkpoints import draw_prompts, greedy, make_model, same_or_near_tie, save, weights_of
from tests.models.drive import Driver, make_config
from tests.models.shapes import THROUGH_TRANSFORMERS
from tests.models.test_every_schedule import ALONE, CHUNKED, PRECISIONS, PROMPTS, run
from tests.models.test_parity import jobs_for
from tests.quant.encoders import gptq
from tests.quant.writing import write

QUICK = ("cohere-parallel-head-norms-tied", "olmoe-experts", "exaone4-windows-and-no-positions")
SHAPES = [pytest.param(shape, marks=() if shape in QUICK else pytest.mark.slow) for shape in THROUGH_TRANSFORMERS]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_equals_transformers(shape, tmp_path):
    model = make_model(shape)
    prompts = draw_prompts(10, 100)
    expected = greedy(model, prompts, 12)
    executor = LocalExecutor(make_config(save(model, tmp_path)))
    jobs = Driver(executor, chunk=97, max_num_seqs=8).run(jobs_for(prompts, 12))
    for job, answer in zip(jobs, expected, strict=True):
        assert job.error is None
        same_or_near_tie(job.output, lambda step, job=job: job.logprobs[step].logprobs[0], answer)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_schedule_gives_the_same_logits(shape, tmp_path, caplog):
    path = save(make_model(shape), tmp_path)
    for precision in PRECISIONS.values():
        expected, hashes = run(path, together=False, **precision, **ALONE)
        outputs, found = run(path, together=True, **precision, **CHUNKED)
        assert_same(expected, outputs)
        assert found == hashes and len(hashes) >= 4 * len(PROMPTS) - 4
    assert "runs op by op" in caplog.text


def write_config(folder, architecture: str, **values):
    """A config.json with transformers' own defaults for an architecture that it has, or nothing but the names."""
    model_class = getattr(transformers, architecture, None)
    fields = model_class.config_class().to_dict() if model_class else {"model_type": "unheard_of"}
    fields |= {"architectures": [architecture], **values}
    (folder / "config.json").write_text(json.dumps(fields, default=str))
    return str(folder)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("T5ForConditionalGeneration", "it is an encoder-decoder, and Quire runs decoders"),
        ("MambaForCausalLM", "it (has layers of type linear_attention|keeps a recurrent state)"),
        ("Qwen3NextForCausalLM", "it has layers of type linear_attention, and Quire keeps keys and values only"),
        ("BigBirdForCausalLM", "does not say .* that it attends through transformers' attention interface"),
        ("ElectraForMaskedLM", "it is not a causal language model"),
        ("CohereForCausalLLM", "neither in Quire .* nor in transformers [0-9.]+, .*--model-impl.*: CohereForCausalLM"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(architecture, reason, tmp_path):
    path = write_config(tmp_path, architecture)
    with pytest.raises(UnsupportedModelError, match=f"architecture {architecture} is not supported.*{reason}"):
        read_model(path, EngineArgs())


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("DiffLlamaForCausalLM", r"of its 2 layers these attend through .* interface: \[0, 0, 1, 1\]"),
        ("GptOssForCausalLM", r"its experts \(GptOssExperts\) have has_bias=True"),
    ],
)
def test_attention_of_another_kind_is_found_when_the_model_is_loaded(architecture, reason, tmp_path):
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    small |= dict(head_dim=16, vocab_size=50, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0)
    if architecture == "GptOssForCausalLM":
        small |= {"layer_types": ["full_attention", "full_attention"]}
    path = write_config(tmp_path, architecture, **small)
    with pytest.raises(UnsupportedModelError, match=f"architecture {architecture} cannot run .*: {reason}"):
        LocalExecutor(make_config(path, load_format="dummy"))


def test_the_switch_chooses(tmp_path, caplog):
    caplog.set_level("INFO", logger="quire")
    path = save(make_model("llama-mha-biases-untied"), tmp_path)
    assert read_model(str(path), EngineArgs())[1] == "quire"
    hf, found = read_model(str(path), EngineArgs(model_impl="transformers"))
    assert found == "transformers" and (hf.num_key_value_heads, hf.head_dim) == (3, 32)
    assert "LlamaForCausalLM runs through transformers" in caplog.text
    path = write_config(tmp_path, "CohereForCausalLM")
    for name in ("quire", "vllm"):
        with pytest.raises(UnsupportedModelError, match="CohereForCausalLM is not supported.*--model-impl transformers"):
            read_model(path, EngineArgs(model_impl=name))


def test_rotary_tables_that_grow_are_those_of_the_longest_request(tmp_path):
    """transformers turns by the longest sequence of a batch: the same only where that is the longest that is served."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = make_model("smollm3-layers-without-positions", rope_parameters=rope, max_position_embeddings=32)
    path = save(model, tmp_path)
    prompts = [[1 + i % 190 for i in range(100)], [5, 6, 7]]
    executor = LocalExecutor(make_config(path, max_model_len=112))
    both = Driver(executor, chunk=50).run(jobs_for(prompts, 12))
    alone = Driver(executor, chunk=50).run(jobs_for(prompts[1:], 12))
    assert alone[0].output == both[1].output and alone[0].logprobs == both[1].logprobs


def test_a_quantized_checkpoint_stays_quantized(tmp_path):
    sizes = dict(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2)
    model = make_model("smollm3-layers-without-positions", **sizes)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    write(model, tmp_path, settings, gptq(4, 32))
    config = make_config(tmp_path)
    loaded = load_model(config.model, config.load, torch.device("cpu"))
    name = "model.layers.1.self_attn.q_proj"
    assert loaded.get_submodule(name).weight.format.name == "int4"
    assert torch.equal(weights_of(loaded)[f"{name}.weight"], model.get_submodule(name).weight)
