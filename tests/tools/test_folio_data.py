"""The training text of folio: deterministic, honest about its held-out phrasings, and what ships is complete."""

import itertools
import json
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.folio.batches import IGNORED, Packer
from tools.folio.countries import ALIASES, BY_NAME, COUNTRIES
from tools.folio.documents import CHAT_TEMPLATE, REGISTRY, Turn, normalise, render, template_pattern
from tools.folio.evaluate import build_cases, same, same_json
from tools.folio.generate import stream
from tools.folio.topics import extraction

ROOT = Path(__file__).parents[2]
BUILTIN = ROOT / "quire" / "builtin"
NAMES = ("folio", "folio-draft")
MAX_BYTES = 16_000_000
NUM_DOCUMENTS = 8_000


@cache
def documents() -> tuple:
    return tuple(itertools.islice(stream(5), NUM_DOCUMENTS))


@cache
def training_questions() -> frozenset[str]:
    asked = {
        normalise(turn.text) for document in documents() for turn in document.turns if turn.role == "user"
    }
    return frozenset(asked | {normalise(document.text) for document in documents() if document.text})


@cache
def tokenizer(name: str):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(BUILTIN / name / "tokenizer.json"))


def held_out_templates() -> list[str]:
    return [template for phrasing in REGISTRY for template in phrasing.held_out]


class TestText:
    def test_same_seed_same_documents(self):
        assert documents()[:500] == tuple(itertools.islice(stream(5), 500))

    def test_other_seed_other_documents(self):
        assert documents()[:50] != tuple(itertools.islice(stream(6), 50))

    def test_assistant_speaks_last(self):
        assert all(d.turns[-1].role == "assistant" for d in documents() if d.turns)

    def test_every_document_is_a_chat_or_a_text(self):
        assert all(bool(d.turns) != bool(d.text) for d in documents())

    def test_documents_fit_the_short_rows(self):
        assert max(sum(len(s.text) for s in render(d)) for d in documents()) < 4_000

    def test_no_field_left_unfilled(self):
        assert not [q for q in training_questions() if re.search(r"\{(country|a|b|name|term|fields)\}", q)]

    def test_the_loss_never_counts_the_user(self):
        chats = [d for d in documents() if d.turns]
        for document in chats[:200]:
            learned = "".join(s.text for s in render(document) if s.learn)
            assert learned == "".join(f"{t.text}<|im_end|>" for t in document.turns if t.role == "assistant")

    def test_extraction_answers_hold_what_the_sentence_says(self):
        for document in documents():
            if document.topic == "extraction":
                question, answer = (turn.text for turn in document.turns[-2:])
                assert all(str(value) in question for value in json.loads(answer).values())


class TestHeldOut:
    def test_there_are_some(self):
        assert len(held_out_templates()) > 60

    def test_no_template_on_both_sides(self):
        train = {normalise(template) for phrasing in REGISTRY for template in phrasing.train}
        assert not train & set(map(normalise, held_out_templates()))

    @pytest.mark.parametrize("template", held_out_templates())
    def test_no_training_text_could_come_from_it(self, template):
        pattern = template_pattern(template.replace("|", ""))
        assert not [q for q in training_questions() if pattern.fullmatch(q)]

    def test_held_out_sentences_are_not_inside_training_questions(self):
        kinds = (
            extraction.PERSON,
            extraction.PRODUCT,
            extraction.EVENT,
            extraction.ORDER,
            extraction.WEATHER,
        )
        asked = [q for q in training_questions() if "json" in q]
        for template in (template for kind in kinds for template in kind.held_out):
            assert not [q for q in asked if template_pattern(template).search(q)]

    def test_evaluation_asks_nothing_that_was_trained(self):
        # Digits aside: a question about other numbers in the same words would be the same phrasing.
        trained = {re.sub(r"\d+", "0", question) for question in training_questions()}
        for cases in build_cases().values():
            for case in cases:
                asked = case.messages[-1].text if case.messages else case.prompt
                assert re.sub(r"\d+", "0", normalise(asked)) not in trained


class TestCountries:
    def test_about_all_of_them_once(self):
        assert 190 <= len(COUNTRIES) == len(BY_NAME)

    def test_rows_are_full(self):
        assert all(all(country[:5]) for country in COUNTRIES)
        assert all(bool(country.zh_name) == bool(country.zh_capital) for country in COUNTRIES)

    def test_aliases_name_known_countries(self):
        assert set(ALIASES) <= set(BY_NAME)

    @pytest.mark.parametrize(("name", "said"), [("France", "France"), ("Netherlands", "the Netherlands")])
    def test_article(self, name, said):
        assert BY_NAME[name].with_article == said


class TestJudges:
    def test_exact(self):
        assert same(" 1, 2\n", "1, 2") and not same("1, 2, 3", "1, 2")

    def test_json(self):
        assert same_json('{"age": 3, "name": "A"}', '{"name": "A", "age": 3}')
        assert not same_json('{"age": 3', '{"age": 3}')


class TestPacking:
    def test_rows_are_whole_documents_of_the_asked_length(self):
        packer = Packer(stream(3), tokenizer("folio"))
        batch = packer.batch(4, 256)
        assert batch.inputs.shape == batch.labels.shape == (4, 256)
        counted = batch.labels != IGNORED
        assert (batch.labels[:, :-1] == batch.inputs[:, 1:])[counted[:, :-1]].all()
        starts = {"<|im_start|>"}
        assert starts & {packer.tokenizer.id_to_token(i) for i in batch.inputs[:, 0].tolist()}


class TestPackageData:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        "file",
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
         "README.md"],
    )  # fmt: skip
    def test_files_are_there(self, name, file):
        assert (BUILTIN / name / file).stat().st_size > 50

    def test_small_enough(self):
        assert sum(f.stat().st_size for name in NAMES for f in (BUILTIN / name).iterdir()) < MAX_BYTES

    @pytest.mark.parametrize("name", NAMES)
    def test_config_serves_old_and_new_readers(self, name):
        config = json.loads((BUILTIN / name / "config.json").read_text())
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        assert config["dtype"] == config["torch_dtype"] == "bfloat16"
        assert config["tie_word_embeddings"] and config["num_key_value_heads"] < config["num_attention_heads"]

    @pytest.mark.parametrize("name", NAMES)
    def test_both_ends_stop(self, name):
        ids = json.loads((BUILTIN / name / "generation_config.json").read_text())["eos_token_id"]
        assert [tokenizer(name).id_to_token(i) for i in ids] == ["<|im_end|>", "<|endoftext|>"]

    def test_one_tokenizer_for_both(self):
        first, second = ((BUILTIN / name / "tokenizer.json").read_bytes() for name in NAMES)
        assert first == second

    @given(st.text(max_size=80))
    def test_tokenizer_round_trips_unicode(self, text):
        ids = tokenizer("folio").encode(text).ids
        assert tokenizer("folio").decode(ids, skip_special_tokens=False) == text

    def test_special_tokens_are_single(self):
        assert len(tokenizer("folio").encode("<|im_start|>user\n").ids) == 3

    def test_chat_template_writes_the_training_text(self):
        jinja2 = pytest.importorskip("jinja2")
        config = json.loads((BUILTIN / "folio" / "tokenizer_config.json").read_text())
        assert config["chat_template"] == CHAT_TEMPLATE and config["model_max_length"] == 1024
        for document in (d for d in documents()[:300] if d.turns):
            messages = [{"role": turn.role, "content": turn.text} for turn in document.turns]
            written = jinja2.Template(CHAT_TEMPLATE).render(messages=messages)
            assert written == "".join(segment.text for segment in render(document))

    def test_generation_prompt(self):
        jinja2 = pytest.importorskip("jinja2")
        turn = Turn("user", "Hi")
        written = jinja2.Template(CHAT_TEMPLATE).render(
            messages=[{"role": turn.role, "content": turn.text}], add_generation_prompt=True
        )
        assert written == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
