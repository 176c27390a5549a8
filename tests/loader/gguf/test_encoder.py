"""BERT as GGUF: its words, its vectors and how they are pooled, as from the folder that the file was made of."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from quire import LLM
from quire.errors import ConfigError, UnsupportedModelError
from quire.loader.configuration import read_checkpoint_fields
from quire.tokenizer.gguf import load_gguf_tokenizer
from tests.models.encoders import make_encoder, save
from tests.models.word_pieces import SPECIAL, save_word_pieces

TEXTS = ["a", "words of letters, one piece per letter", "Is it cold? H\u00e9, no!", "\u4f60 and 7"]


def write_encoder(model, path, pieces: list[str], pooling: int | None, types: list[int] | None = None):
    """As llama.cpp's converter does: pieces that begin a word are marked instead of those that go on."""
    config, writer = model.config, gguf.GGUFWriter(path, "bert")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_token_type_count(config.type_vocab_size)
    controls = [gguf.TokenType.CONTROL if piece in SPECIAL else gguf.TokenType.NORMAL for piece in pieces]
    marked = [
        piece if piece in SPECIAL else piece[2:] if piece.startswith("##") else f"\u2581{piece}" for piece in pieces
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(marked)
    writer.add_token_types(types or controls)
    writer.add_sep_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if not name.startswith("pooler."):
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), parameter.detach().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, its model, the pieces of its tokenizer)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bert")
    model = make_encoder("bert-heads-of-24")
    save(model, folder)
    backend = save_word_pieces(folder)
    return folder, model, sorted(backend.get_vocab(), key=backend.get_vocab().get)


def vectors(path, **options):
    with LLM(str(path), num_threads=1, dtype="float32", **options) as llm:
        outputs = llm.embed(TEXTS, use_tqdm=False)
    return [output.prompt_token_ids for output in outputs], torch.tensor([output.outputs.embedding for output in outputs])


@pytest.mark.parametrize(("pooling", "kind"), [(1, "MEAN"), (2, "CLS"), (3, "LAST"), (0, "CLS"), (None, "CLS")])
def test_vectors_are_those_of_the_folder(made, tmp_path, pooling, kind):
    folder, model, pieces = made
    ids, found = vectors(write_encoder(model, tmp_path / "x.gguf", pieces, pooling))
    expected_ids, expected = vectors(folder, pooler_config={"pooling_type": kind})
    assert ids == expected_ids
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_reranker_is_refused(made, tmp_path):
    _, model, pieces = made
    path = write_encoder(model, tmp_path / "x.gguf", pieces, gguf.PoolingType.RANK)
    with pytest.raises(UnsupportedModelError, match="bert.pooling_type must be 1 .* got 4: rerankers"):
        read_checkpoint_fields(path)


def test_capital_letters_stay_where_the_vocabulary_has_some(made, tmp_path):
    _, model, pieces = made
    lower = load_gguf_tokenizer(write_encoder(model, tmp_path / "lower.gguf", pieces, 1))
    cased = load_gguf_tokenizer(write_encoder(model, tmp_path / "cased.gguf", [*pieces, "A"], 1))
    assert lower.encode("A")[1:-1] == [pieces.index("a")]
    assert cased.encode("A")[1:-1] == [len(pieces)] and cased.encode("B")[1:-1] == [pieces.index("[UNK]")]


def test_a_tokenizer_without_its_special_tokens(made, tmp_path):
    _, model, pieces = made
    path = write_encoder(model, tmp_path / "x.gguf", [f"x{i}" for i in range(len(pieces))], 1)
    with pytest.raises(ConfigError, match="its tokenizer has no cls_token"):
        load_gguf_tokenizer(path)
