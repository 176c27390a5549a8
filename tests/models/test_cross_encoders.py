"""Pairs of texts through BERT's segments: token ids, segments and scores as transformers makes them, offline and over HTTP."""

from __future__ import annotations

import json
import math
from string import ascii_lowercase

import httpx
import pytest
import tokenizers
import torch

from quire import LLM, AsyncEngineArgs, AsyncLLMEngine, PoolingParams
from quire.errors import ConfigError, InvalidRequestError
from quire.ops import cpu
from quire.server.app import build_app
from quire.tokenizer.load import load_tokenizer
from tests.models.encoders import VOCAB_SIZE, randomize

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase, *(f"##{x}" for x in ascii_lowercase)]
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 96, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 160, "initializer_range": 0.15, "num_labels": 1}
QUERY = "which way to the river"
DOCUMENTS = ["down", "the river lies behind the hill and the old mill", "a" * 15, "b c " * 30, "which way to the river"]
BASE = {"num_threads": 1, "dtype": "float32"}


def make_cross_encoder(folder, tokenizer_config=None, **config):
    """A checkpoint with its tokenizer; (folder, transformers' model, transformers' tokenizer)."""
    import transformers

    torch.manual_seed(5)
    torch.set_num_threads(1)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES | config)).eval()
    randomize(model)
    model.save_pretrained(folder)
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    stated = {"tokenizer_class": "BertTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | (tokenizer_config or {})))
    return folder, model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_cross_encoder(tmp_path_factory.mktemp("cross"))


@torch.inference_mode()
def logit_of(model, encoded) -> float:
    return model(**{name: torch.tensor([ids]) for name, ids in encoded.items()}).logits[0, 0].item()


def test_scores_equal_transformers(encoder, caplog):
    folder, model, tokenizer = encoder
    encoded = [tokenizer(QUERY, document) for document in DOCUMENTS]
    logits = [logit_of(model, each) for each in encoded]
    with LLM(str(folder), **BASE) as llm:
        found = llm.score(QUERY, DOCUMENTS, use_tqdm=False)
        raw = llm.score(QUERY, DOCUMENTS, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
        pairs = llm.score([QUERY, "z"], [DOCUMENTS[0], "z"], use_tqdm=False)
        given = [{"prompt_token_ids": each["input_ids"], "token_type_ids": each["token_type_ids"]} for each in encoded]
        as_prompts = llm.classify(given, use_tqdm=False)
        single = llm.classify(QUERY, use_tqdm=False)
    assert [each.prompt_token_ids for each in found] == [each["input_ids"] for each in encoded]
    assert [each.outputs.score for each in raw] == pytest.approx(logits, abs=1e-4)
    assert [each.outputs.score for each in found] == pytest.approx([1 / (1 + math.exp(-x)) for x in logits], abs=1e-4)
    assert pairs[0].outputs.score == found[0].outputs.score
    assert [each.outputs.probs[0] for each in as_prompts] == [each.outputs.score for each in found]
    assert single[0].outputs.probs[0] == pytest.approx(1 / (1 + math.exp(-logit_of(model, tokenizer(QUERY)))), abs=1e-4)
    without = {"input_ids": encoded[1]["input_ids"]}
    assert abs(logit_of(model, without) - logits[1]) > 0.01, "segments do not matter here: the test shows nothing"
    assert "runs op by op" not in caplog.text


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
@pytest.mark.parametrize("precision", [{"dtype": "float32"}, {"dtype": "bfloat16", "quantization": "int8"}], ids=str)
def test_rows_alone(encoder, precision):
    """A score is a function of its pair: one at a time, together in one step beside single texts, and a few seats at a time."""
    results = []
    for more in (
        {"max_num_seqs": 1, "num_threads": 1},
        {"max_num_batched_tokens": 1024, "num_threads": 2},
        {"max_num_seqs": 3, "max_num_batched_tokens": 200, "num_threads": 1},
    ):
        with LLM(str(encoder[0]), **precision, **more) as llm:
            found = [each.outputs.score for each in llm.score(QUERY, DOCUMENTS, use_tqdm=False)]
            ids = llm.get_tokenizer().encode(QUERY)
            mixed = [ids, {"prompt_token_ids": ids, "token_type_ids": [0] * 3 + [1] * (len(ids) - 3)}, ids]
            results.append(found + [each.outputs.probs[0] for each in llm.classify(mixed, use_tqdm=False)])
    assert results[0] == results[1] == results[2]
    assert results[0][-1] == results[0][-3] != results[0][-2]


@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs_are_cut_as_transformers_cuts_them(encoder, tmp_path, side):
    folder, _, tokenizer = make_cross_encoder(tmp_path, {"truncation_side": side})
    ours = load_tokenizer(str(folder))
    tokenizer.truncation_side = side
    for first, second in [("abc de f", "gh i jklm nop"), ("gh i jklm nop", "abc de f"), ("a", "b" * 9), ("abcd", "efgh")]:
        for limit in range(5, 25):
            expected = tokenizer(first, second, truncation="longest_first", max_length=limit)
            found = ours.encode_pair(first, second, limit)
            assert found == (expected["input_ids"], expected["token_type_ids"]), (first, second, limit)
    with pytest.raises(InvalidRequestError, match="truncate_prompt_tokens must leave a token to each"):
        ours.encode_pair("abc", "def", 4)
    with LLM(str(folder), **BASE) as llm:
        long = llm.score("a " * 200, "b " * 100, pooling_params=PoolingParams(truncate_prompt_tokens=-1), use_tqdm=False)
        assert len(long[0].prompt_token_ids) == 160 and long[0].prompt_token_ids.count(WORDS.index("b")) == 78


def test_a_tokenizer_may_give_no_segments(tmp_path):
    folder, model, tokenizer = make_cross_encoder(tmp_path, {"model_input_names": ["input_ids", "attention_mask"]})
    encoded = tokenizer(QUERY, DOCUMENTS[1])
    assert "token_type_ids" not in encoded
    with LLM(str(folder), **BASE) as llm:
        found = llm.score(QUERY, DOCUMENTS[1], pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    assert found[0].outputs.score == pytest.approx(logit_of(model, encoded), abs=1e-4)


@pytest.mark.parametrize(
    "stated",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
    ],
    ids=str,
)
def test_the_checkpoint_says_whether_scores_are_probabilities(tmp_path, stated):
    folder, model, tokenizer = make_cross_encoder(tmp_path, **stated)
    if "Tanh" in str(stated):
        with pytest.raises(ConfigError, match="must be Sigmoid or Identity, got 'torch.nn.modules.activation.Tanh'"):
            LLM(str(folder), **BASE)
        return
    logit = logit_of(model, tokenizer("a", "b"))
    with LLM(str(folder), **BASE) as llm:
        found = llm.score("a", "b", use_tqdm=False)[0].outputs.score
    assert found == pytest.approx(logit if "Identity" in str(stated) else 1 / (1 + math.exp(-logit)), abs=1e-4)


@pytest.mark.parametrize("segments", [[0, 1, 0], [0, 1], [0, 0, 2], "001", 5, [0, 0, 0, 1]], ids=str)
def test_segments_that_make_no_sense_are_refused(encoder, segments):
    with LLM(str(encoder[0]), **BASE) as llm:
        with pytest.raises(InvalidRequestError, match="token_type_ids must be zeros and then ones"):
            llm.classify({"prompt_token_ids": [2, 7, 3], "token_type_ids": segments}, use_tqdm=False)


def test_a_model_without_segments_takes_none():
    with LLM("folio", runner="pooling", num_threads=1) as llm:
        with pytest.raises(InvalidRequestError, match="token_type_ids must be left out"):
            llm.embed({"prompt_token_ids": [2, 7, 3], "token_type_ids": [0, 0, 1]}, use_tqdm=False)


async def test_scores_and_ranks_over_http(encoder):
    folder, model, tokenizer = encoder
    expected = [1 / (1 + math.exp(-logit_of(model, tokenizer(QUERY, document)))) for document in DOCUMENTS]
    num_tokens = sum(len(tokenizer(QUERY, document)["input_ids"]) for document in DOCUMENTS)
    order = sorted(range(len(DOCUMENTS)), key=lambda i: -expected[i])
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(str(folder), **BASE))
    try:
        transport = httpx.ASGITransport(app=build_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for path in ("/score", "/v1/score"):
                answer = (await client.post(path, json={"text_1": QUERY, "text_2": DOCUMENTS})).json()
                assert [each["score"] for each in answer["data"]] == pytest.approx(expected, abs=1e-4)
                assert answer["usage"]["prompt_tokens"] == num_tokens
            for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
                body = {"query": QUERY, "documents": DOCUMENTS, "top_n": 3}
                answer = (await client.post(path, json=body)).json()
                assert [each["index"] for each in answer["results"]] == order[:3]
                scores = [each["relevance_score"] for each in answer["results"]]
                assert scores == pytest.approx([expected[i] for i in order[:3]], abs=1e-4)
    finally:
        await engine.shutdown()
