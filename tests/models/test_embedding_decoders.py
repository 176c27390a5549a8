"""Vectors of models that were made for text: as transformers' hidden states say, and to the last bit the same under every
schedule.
"""

from __future__ import annotations

import json

import pytest
import torch

from quire import LLM, AsyncLLMEngine, EngineArgs, PoolingParams
from quire.engine.pooling import numbers_of, pooling_request
from quire.errors import ConfigError, InvalidRequestError, NotSupportedError, UnsupportedModelError
from quire.ops import cpu
from tests.models.checkpoints import make_model, save
from tests.models.encoders import hidden_states, pooled, randomize
from tests.models.test_every_schedule import PROMPTS

BASE = {"skip_tokenizer_init": True, "max_model_len": 128, "num_gpu_blocks_override": 64, "num_threads": 1}
SCHEDULES = {
    "alone": {"enable_prefix_caching": False, "max_num_batched_tokens": 256, "max_num_seqs": 1},
    "together": {"enable_prefix_caching": True, "max_num_batched_tokens": 1024},
    "chunks": {"enable_prefix_caching": True, "max_num_batched_tokens": 16, "max_num_seqs": 4, "num_threads": 2},
    "odd chunks": {"enable_prefix_caching": False, "max_num_batched_tokens": 13},
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """(path of a checkpoint, its model in transformers)."""
    torch.set_num_threads(1)
    model = make_model("qwen2-gqa-tied-yarn")
    return save(model, tmp_path_factory.mktemp("decoder")), model


def embed(path, **options) -> list[list[float]]:
    with LLM(str(path), **BASE | {"runner": "pooling"} | options) as llm:
        return [output.outputs.embedding for output in llm.embed(PROMPTS, use_tqdm=False)]


@pytest.mark.parametrize("kind", ["LAST", "MEAN", "CLS"])
def test_vectors_equal_transformers(decoder, kind):
    path, model = decoder
    found = embed(path, dtype="float32", pooler_config={"pooling_type": kind})
    for prompt, vector in zip(PROMPTS, found, strict=True):
        states = hidden_states(model, prompt["prompt_token_ids"])
        assert vector == pytest.approx(pooled(states, kind.lower()), abs=2e-5)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
@pytest.mark.parametrize("kind", ["LAST", "MEAN"])
def test_every_schedule_gives_the_same_vectors(decoder, kind):
    options = {"pooler_config": {"pooling_type": kind}, "dtype": "bfloat16", "quantization": "int8"}
    expected = embed(decoder[0], **options, **SCHEDULES["alone"])
    assert len({tuple(vector) for vector in expected}) == len(PROMPTS)
    for name, schedule in SCHEDULES.items():
        assert embed(decoder[0], **options | schedule) == expected, name


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
@pytest.mark.parametrize("kind", ["LAST", "MEAN"])
@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_a_request_that_loses_its_seat_starts_again(decoder, kind, mode):
    """Under the policy `fair`: seats of the first tenant, in the middle of long prompts, go to another's."""
    options = {"pooler_config": {"pooling_type": kind}, "max_num_seqs": 3, "long_prefill_token_threshold": 7}
    options |= {"scheduling_policy": "fair", "preemption_mode": mode, "swap_space": 0.1}
    expected = embed(decoder[0], pooler_config=options["pooler_config"])
    with LLM(str(decoder[0]), **BASE, runner="pooling", **options) as llm:
        engine = llm.llm_engine
        params = pooling_request(engine.config.model.pooling, None, "embed", 96)
        found: dict[str, bytes] = {}
        for tenant, numbers in {"a": [7, 5, 6], "b": [0, 1, 2, 3, 4]}.items():
            for number in numbers:
                engine.submit(engine.prepare(str(number), PROMPTS[number], params, tenant=tenant))
            found |= {each.request_id: each.pooled for each in engine.step() if each.finished}
        while engine.has_unfinished_requests():
            found |= {each.request_id: each.pooled for each in engine.step() if each.finished}
        assert engine.stats().total_preemptions > 0
    assert [numbers_of(found[str(number)]) for number in range(len(PROMPTS))] == expected


@pytest.mark.parametrize(("kind", "num_cached"), [("LAST", 96), ("MEAN", 0)])
def test_only_a_vector_of_the_last_token_takes_its_prompt_from_the_cache(decoder, kind, num_cached):
    prompt = PROMPTS[-1]  # 100 tokens: six full blocks
    with LLM(str(decoder[0]), **BASE, runner="pooling", pooler_config={"pooling_type": kind}) as llm:
        first, second = (llm.embed(prompt, use_tqdm=False)[0] for _ in range(2))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, num_cached)
    assert first.outputs.embedding == second.outputs.embedding


def test_a_checkpoint_without_a_head(tmp_path):
    """transformers saves the body alone as `Qwen3Model`; it pools without being told to, and takes a whole context."""
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=199, hidden_size=96, intermediate_size=172, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, max_position_embeddings=64, initializer_range=0.15, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(7)
    model = transformers.Qwen3Model(config).eval()
    randomize(model)
    path = save(model, tmp_path)
    ids = list(range(10, 74))
    with LLM(str(path), skip_tokenizer_init=True, dtype="float32") as llm:
        vector = llm.embed(ids, use_tqdm=False)[0].outputs.embedding
    assert vector == pytest.approx(pooled(hidden_states(model, ids), "last"), abs=2e-5)
    with pytest.raises(ConfigError, match="output head"):
        LLM(str(path), skip_tokenizer_init=True, runner="generate")


# -- what the files and the options say ----------------------------------------------------------------------


def write_pipeline(path, modules: list[str], pooling: dict | None = None, **files: dict) -> None:
    """The files of sentence-transformers."""
    entries = [{"idx": i, "name": str(i), "path": f"{i}_{m}" if i else "", "type": f"sentence_transformers.models.{m}"}
               for i, m in enumerate(modules)]  # fmt: skip
    (path / "modules.json").write_text(json.dumps(entries))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))


def test_a_sentence_pipeline_decides(decoder, tmp_path):
    path = save(decoder[1], tmp_path)
    write_pipeline(path, ["Transformer", "Pooling"], sentence_bert_config={"max_seq_length": 70})
    ids = PROMPTS[4]["prompt_token_ids"]
    with LLM(str(path), skip_tokenizer_init=True, dtype="float32") as llm:
        assert llm.llm_engine.max_model_len == 70
        vector = llm.embed(ids, use_tqdm=False)[0].outputs.embedding
    assert vector == pytest.approx(pooled(hidden_states(decoder[1], ids), "mean", normalize=False), abs=1e-4)
    write_pipeline(path, ["Transformer", "Pooling", "Normalize"], {"pooling_mode": "lasttoken"})
    with LLM(str(path), skip_tokenizer_init=True, dtype="float32") as llm:
        vector = llm.embed(ids, use_tqdm=False)[0].outputs.embedding
    assert vector == pytest.approx(pooled(hidden_states(decoder[1], ids), "last"), abs=2e-5)
    with LLM(str(path), skip_tokenizer_init=True, runner="generate") as llm:
        assert llm.generate(ids, use_tqdm=False)[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("modules", "pooling", "named"),
    [
        (["Transformer", "Pooling", "Dense"], None, "Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "max"),
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls"),
    ],
)
def test_a_pipeline_with_unknown_steps_is_refused(decoder, tmp_path, modules, pooling, named):
    path = save(decoder[1], tmp_path)
    write_pipeline(path, modules, pooling)
    with pytest.raises(UnsupportedModelError, match=named):
        LLM(str(path), skip_tokenizer_init=True)


def test_shorter_vectors(decoder):
    """Cut, then given the length 1; only where the model was trained for it."""
    ids = PROMPTS[4]["prompt_token_ids"]
    options = {**BASE, "runner": "pooling", "dtype": "float32"}
    with LLM(str(decoder[0]), **options, hf_overrides={"matryoshka_dimensions": [8, 32]}) as llm:
        vector = llm.embed(ids, pooling_params=PoolingParams(dimensions=8), use_tqdm=False)[0].outputs.embedding
        with pytest.raises(InvalidRequestError, match="8, 32"):
            llm.embed(ids, pooling_params=PoolingParams(dimensions=16), use_tqdm=False)
    states = hidden_states(decoder[1], ids)[:, :8]
    assert vector == pytest.approx(pooled(states, "last"), abs=2e-5)
    with LLM(str(decoder[0]), **options) as llm:
        with pytest.raises(InvalidRequestError, match="is_matryoshka"):
            llm.embed(ids, pooling_params=PoolingParams(dimensions=8), use_tqdm=False)


def test_a_generator_embeds_only_when_told_to(decoder):
    with LLM(str(decoder[0]), **BASE) as llm:
        with pytest.raises(NotSupportedError, match="runner pooling"):
            llm.embed(PROMPTS[0], use_tqdm=False)
        assert llm.generate(PROMPTS[0], use_tqdm=False)[0].outputs[0].token_ids
    for option in ({"task": "embed"}, {"convert": "embed"}):
        with LLM(str(decoder[0]), **BASE, **option) as llm:
            assert llm.embed(PROMPTS[0], use_tqdm=False)[0].outputs.embedding
            with pytest.raises(NotSupportedError, match="generates no text"):
                llm.generate(PROMPTS[0], use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"runner": "generate", "task": "embed"}, "must agree"),
        ({"task": "embed", "pooler_config": {"pooling_type": "MAX"}}, "MEAN"),
        ({"task": "embed", "pooler_config": {"step": 1}}, "step"),
        ({"task": "classify"}, "classifies"),
    ],
)
def test_wrong_options(decoder, options, named):
    with pytest.raises(ConfigError, match=named):
        LLM(str(decoder[0]), **BASE, **options)


async def test_the_asynchronous_engine_encodes(decoder):
    engine = AsyncLLMEngine.from_engine_args(EngineArgs(str(decoder[0]), **BASE, task="embed"))
    try:
        found = [output async for output in engine.encode(PROMPTS[3], PoolingParams(normalize=False))]
    finally:
        await engine.shutdown()
    with LLM(str(decoder[0]), **BASE, task="embed") as llm:
        (expected,) = llm.encode(PROMPTS[3], PoolingParams(normalize=False), use_tqdm=False)
    assert len(found) == 1 and torch.equal(found[0].outputs.data, expected.outputs.data)


def test_scores_are_cosines(decoder):
    first, *others = PROMPTS[3:6]
    with LLM(str(decoder[0]), **BASE, task="embed") as llm:
        vectors = [torch.tensor(each.outputs.embedding) for each in llm.embed([first, *others], use_tqdm=False)]
        scores = [each.outputs.score for each in llm.score(first, others, use_tqdm=False)]
        same = llm.score(others, others, use_tqdm=False)
        with pytest.raises(InvalidRequestError, match="as many as data_2"):
            llm.score(others, [first], use_tqdm=False)
    assert scores == pytest.approx([float(vectors[0] @ each) for each in vectors[1:]], abs=1e-6)
    assert [each.outputs.score for each in same] == pytest.approx([1.0, 1.0])
