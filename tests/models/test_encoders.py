"""Every encoder against transformers, and against itself: to the last bit alone and in a batch, in every precision."""

from __future__ import annotations

import pytest
import torch

from quire import LLM, PoolingParams
from quire.errors import ConfigError, NotSupportedError, PromptTooLongError
from quire.models import ModelRegistry
from quire.ops import cpu
from tests.models.encoders import ENCODERS, LONGEST, draw_texts, hidden_states, make_encoder, pooled, save

LENGTHS = (1, 2, 15, 16, 17, 33, 49, LONGEST)
TEXTS = draw_texts(LENGTHS)
PROMPTS = [{"prompt_token_ids": ids} for ids in TEXTS]
BASE = {"skip_tokenizer_init": True, "num_threads": 1, "dtype": "float32"}


CLASSIFIERS = [shape for shape in ENCODERS if "classifier" in shape]
EMBEDDERS = [shape for shape in ENCODERS if shape not in CLASSIFIERS]


@pytest.fixture(scope="module")
def encoder(request, tmp_path_factory):
    """(path of a checkpoint, its model in transformers)."""
    torch.set_num_threads(1)
    model = make_encoder(request.param)
    return save(model, tmp_path_factory.mktemp(request.param)), model


@pytest.mark.parametrize("encoder", EMBEDDERS, indirect=True)
@pytest.mark.parametrize("kind", ["CLS", "MEAN", "LAST"])
def test_embeddings_equal_transformers(encoder, kind, caplog):
    path, model = encoder
    with LLM(str(path), **BASE, pooler_config={"pooling_type": kind}) as llm:
        found = llm.embed(PROMPTS, use_tqdm=False)
        plain = llm.encode(PROMPTS[3], PoolingParams(normalize=False), use_tqdm=False)
    for ids, output in zip(TEXTS, found, strict=True):
        assert output.outputs.embedding == pytest.approx(pooled(hidden_states(model, ids), kind.lower()), abs=2e-5)
        assert output.prompt_token_ids == ids
    expected = pooled(hidden_states(model, TEXTS[3]), kind.lower(), normalize=False)
    assert plain[0].outputs.data.tolist() == pytest.approx(expected, abs=2e-4)
    assert "runs op by op" not in caplog.text


@pytest.mark.parametrize("encoder", CLASSIFIERS, indirect=True)
def test_classes_equal_transformers(encoder):
    path, model = encoder
    with LLM(str(path), **BASE) as llm:
        raw, found = llm.encode(PROMPTS, use_tqdm=False), llm.classify(PROMPTS, use_tqdm=False)
        with pytest.raises(NotSupportedError, match="classifier"):
            llm.embed(PROMPTS, use_tqdm=False)
    for ids, numbers, output in zip(TEXTS, raw, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        assert numbers.outputs.data.tolist() == pytest.approx(logits.tolist(), abs=1e-4)
        expected = logits.sigmoid() if len(logits) == 1 else logits.softmax(0)
        assert output.outputs.probs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
@pytest.mark.parametrize("shape", ["bert-heads-of-80-tanh-gelu", "roberta"])
@pytest.mark.parametrize(
    "precision", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int8"}], ids=str
)
def test_rows_alone(shape, precision, tmp_path):
    """A vector is a function of its text: one at a time, together in one step, and a few seats at a time."""
    path = save(make_encoder(shape), tmp_path)
    options = {"skip_tokenizer_init": True, "pooler_config": {"pooling_type": "MEAN"}, **precision}
    results = []
    for more in (
        {"max_num_seqs": 1, "num_threads": 1},
        {"max_num_batched_tokens": 1024, "num_threads": 2},
        {"max_num_seqs": 3, "max_num_batched_tokens": 160, "num_threads": 1},
    ):
        with LLM(str(path), **options, **more) as llm:
            results.append([output.outputs.embedding for output in llm.embed(PROMPTS, use_tqdm=False)])
    assert results[0] == results[1] == results[2]
    assert len({tuple(each) for each in results[0]}) == len(PROMPTS)


def test_a_text_is_one_step_of_at_most_the_models_positions(tmp_path):
    path = save(make_encoder("roberta"), tmp_path)  # 160 rows, of which tokens have 158
    full, longer = draw_texts((158, 159))
    with LLM(str(path), **BASE) as llm:
        config = llm.llm_engine.config
        assert not config.cache.enable_prefix_caching and not config.scheduler.enable_chunked_prefill
        llm.embed(full, use_tqdm=False)
        with pytest.raises(PromptTooLongError, match="158"):
            llm.embed(longer, use_tqdm=False)
        cut = llm.embed(longer, pooling_params=PoolingParams(truncate_prompt_tokens=-1), use_tqdm=False)
        assert len(cut[0].prompt_token_ids) == 158
        assert llm.llm_engine.stats().kv_cache_usage == 0
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        LLM(str(path), **BASE, max_num_batched_tokens=100)


def test_an_encoder_generates_nothing(tmp_path):
    path = save(make_encoder("bert-heads-of-24"), tmp_path)
    with LLM(str(path), **BASE) as llm:
        with pytest.raises(NotSupportedError, match=r"LLM\.embed"):
            llm.generate(PROMPTS[0], use_tqdm=False)
    with pytest.raises(ConfigError, match="encoder"):
        LLM(str(path), **BASE, runner="generate")


def test_every_encoder_has_a_row():
    registered = {name for name in ModelRegistry.get_supported_archs() if ModelRegistry.is_encoder(name)}
    assert {name for name, _ in ENCODERS.values()} == registered
