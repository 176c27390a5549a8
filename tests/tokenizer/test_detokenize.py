"""The stream, joined, is the text; nothing shown is wrong or taken back; stop strings cut where they
complete.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.tokenizer import IncrementalDetokenizer, Tokenizer, load_tokenizer
from tests.shared_data import shared
from tests.tokenizer import tiny

Ids = list[int]
STOPS = ["the", "e", "ab", "abab", "stop", " a", "é", "😀", "t", "\n\n", "</s>", "aab", "aaa"]


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[Ids]:
    """Token ids: text as the tokenizer cuts it, or anything at all, invalid UTF-8 and unknown ids
    included.
    """
    text = st.one_of(st.text(max_size=12), st.text(alphabet="the ab\n😀é你", max_size=24))
    encoded = text.map(lambda sample: tokenizer.encode(sample, add_special_tokens=False))
    size = tokenizer.vocab_size
    anything = st.lists(st.integers(0, size + 2), max_size=20)
    return st.lists(st.one_of(encoded, anything), max_size=3).map(
        lambda lists: [i for ids in lists for i in ids]
    )


@st.composite
def cases(draw: st.DrawFn, names: Sequence[str] = tuple(tiny.EXACT)) -> tuple[Tokenizer, Ids, list[Ids]]:
    """(tokenizer, prompt, output cut into the chunks of single updates)."""
    tokenizer = tiny.ALL[draw(st.sampled_from(names))]()
    prompt, output = draw(ids_of(tokenizer)), draw(ids_of(tokenizer))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    chunks, at = [], 0
    while at < len(output):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(output[at : at + size])
        at += size
    return tokenizer, prompt, chunks


def run(detokenizer: IncrementalDetokenizer, chunks: list[Ids]) -> list[str]:
    """The deltas of a stream."""
    deltas = []
    for chunk in chunks:
        stopped = detokenizer.update(chunk) is not None
        deltas.append(detokenizer.next_text(finished=stopped, delta=True))
        if stopped:
            return deltas
    return [*deltas, detokenizer.next_text(finished=True, delta=True)]


def text_after(tokenizer: Tokenizer, prompt: Ids, output: Ids, skip: bool = True) -> str:
    """What decoding everything shows after the settled text of the prompt."""
    settled = tokenizer.make_stream(skip_special_tokens=skip).push(prompt)
    return tokenizer.decode(prompt + output, skip_special_tokens=skip)[len(settled) :] if output else ""


def flat(chunks: list[Ids]) -> Ids:
    return [token_id for chunk in chunks for token_id in chunk]


@given(cases(), st.booleans())
def test_joined_stream_is_decoded_text(case: tuple[Tokenizer, Ids, list[Ids]], skip: bool) -> None:
    tokenizer, prompt, chunks = case
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
    joined = "".join(run(detokenizer, chunks))
    assert joined == detokenizer.text == text_after(tokenizer, prompt, flat(chunks), skip)
    assert detokenizer.num_tokens == len(flat(chunks))


@given(cases())
def test_every_cumulative_text_is_a_prefix_of_the_final_text(case: tuple[Tokenizer, Ids, list[Ids]]) -> None:
    tokenizer, prompt, chunks = case
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, stop=["never-there"])
    shown = []
    for chunk in chunks:
        detokenizer.update(chunk)
        shown.append(detokenizer.next_text(finished=False, delta=False))
    final = detokenizer.next_text(finished=True, delta=False)
    assert all(final.startswith(text) for text in shown)
    assert final == text_after(tokenizer, prompt, flat(chunks))


@given(st.sampled_from(sorted(tiny.EXACT)), st.text(max_size=30), st.integers(1, 3))
def test_valid_text_streams_without_replacement_characters(name: str, text: str, size: int) -> None:
    text = text.replace("\ufffd", "")
    tokenizer = tiny.EXACT[name]()
    ids = tokenizer.encode("x", add_special_tokens=False) + tokenizer.encode(text, add_special_tokens=False)
    unknown = tokenizer.token_to_id("<unk>")
    ids = [token_id for token_id in ids if token_id != unknown]
    detokenizer = IncrementalDetokenizer(tokenizer, ids[:1])
    deltas = run(detokenizer, [ids[at : at + size] for at in range(1, len(ids), size)])
    assert not any("\ufffd" in delta for delta in deltas)


def expected_stop(
    tokenizer: Tokenizer, prompt: Ids, output: Ids, stops: list[str], include: bool, min_tokens: int
) -> tuple[str, str | None, int]:
    """(text, stop string, tokens consumed) by looking at every position of the whole text."""
    stream = tokenizer.make_stream(prompt)
    text = ""
    for num_tokens, token_id in enumerate(output, 1):
        for char in stream.push([token_id]):
            text += char
            done = [stop for stop in stops if stop and text.endswith(stop)] if num_tokens > min_tokens else []
            if done:
                return (text if include else text[: -len(done[0])]), done[0], num_tokens
    return text + (stream.flush() if output else ""), None, len(output)


def stops_in(text: str) -> st.SearchStrategy[list[str]]:
    """Stop lists, most of them with parts of the text."""
    bounds = st.tuples(st.integers(0, len(text)), st.integers(1, 6))
    part = bounds.map(lambda bound: text[bound[0] : bound[0] + bound[1]])
    return st.lists(part | part | st.sampled_from(STOPS), max_size=4)


@settings(max_examples=300)
@given(cases(), st.data(), st.booleans(), st.sampled_from([0, 0, 1, 3]))
def test_stop_strings(
    case: tuple[Tokenizer, Ids, list[Ids]], data: st.DataObject, include: bool, minimum: int
) -> None:
    tokenizer, prompt, chunks = case
    stops = data.draw(stops_in(text_after(tokenizer, prompt, flat(chunks))))
    detokenizer = IncrementalDetokenizer(
        tokenizer, prompt, stop=stops, include_stop_str_in_output=include, min_tokens=minimum
    )
    joined = "".join(run(detokenizer, chunks))
    text, stop, num_tokens = expected_stop(tokenizer, prompt, flat(chunks), stops, include, minimum)
    assert (joined, detokenizer.text, detokenizer.stop, detokenizer.num_tokens) == (
        text,
        text,
        stop,
        num_tokens,
    )


@given(cases(), st.lists(st.sampled_from(STOPS), min_size=1, max_size=3))
def test_no_more_is_held_than_a_stop_string_could_need(
    case: tuple[Tokenizer, Ids, list[Ids]], stops: list[str]
) -> None:
    tokenizer, prompt, chunks = case
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, stop=stops)
    for chunk in chunks:
        if detokenizer.update(chunk) is not None:
            return
        held = detokenizer.text[len(detokenizer.next_text(finished=False, delta=False)) :]
        assert len(held) == detokenizer.num_held
        assert not held or any(stop.startswith(held) for stop in stops)


@given(cases(["word_level"]))
def test_window_stream_joins_to_the_decoded_text(case: tuple[Tokenizer, Ids, list[Ids]]) -> None:
    tokenizer, prompt, chunks = case
    detokenizer = IncrementalDetokenizer(tokenizer, prompt)
    joined = "".join(run(detokenizer, chunks))
    assert joined == tokenizer.decode(prompt + flat(chunks))[len(tokenizer.decode(prompt)) :]


def encode(tokenizer: Tokenizer, text: str) -> Ids:
    return tokenizer.encode(text, add_special_tokens=False)


def test_a_character_of_four_tokens_shows_once_it_is_whole() -> None:
    tokenizer = tiny.byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, [])
    shown = []
    for token_id in [*encode(tokenizer, "😀"), 0xE4, 0xBD]:
        detokenizer.update([token_id])
        shown.append(detokenizer.next_text(finished=False, delta=True))
    assert shown == ["", "", "😀", "", ""]
    assert detokenizer.next_text(finished=True, delta=True) == "\ufffd"
    assert detokenizer.next_text(finished=True, delta=True) == ""


def test_output_completes_a_character_that_the_prompt_began() -> None:
    detokenizer = IncrementalDetokenizer(tiny.byte_level(), [0x61, 0xE4, 0xBD])
    detokenizer.update([0xA0, 0x62])
    assert detokenizer.next_text(finished=True, delta=True) == "你b"


def test_the_start_of_a_stop_string_is_held_back() -> None:
    tokenizer = tiny.byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["stop"])
    detokenizer.update(encode(tokenizer, "go st"))
    assert detokenizer.next_text(finished=False, delta=True) == "go "
    assert detokenizer.num_held == 2
    detokenizer.update(encode(tokenizer, "a"))
    assert detokenizer.next_text(finished=False, delta=True) == "sta"
    assert detokenizer.update(encode(tokenizer, "stopped")) == "stop"
    assert detokenizer.next_text(finished=True, delta=True) == ""
    assert (detokenizer.text, detokenizer.num_tokens) == ("go sta", 10)


def test_the_earliest_completion_wins_and_ties_go_to_the_first_listed() -> None:
    tokenizer = tiny.byte_level()
    for stops, winner, text in (
        (["abcd", "bc"], "bc", "a"),
        (["c", "bc"], "c", "ab"),
        (["bc", "c"], "bc", "a"),
    ):
        detokenizer = IncrementalDetokenizer(tokenizer, [], stop=stops)
        assert detokenizer.update(encode(tokenizer, "abcd")) == winner
        assert detokenizer.next_text(finished=True, delta=False) == text


def test_nothing_is_held_back_when_the_stop_string_stays() -> None:
    tokenizer = tiny.byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["stop"], include_stop_str_in_output=True)
    detokenizer.update(encode(tokenizer, "go st"))
    assert detokenizer.next_text(finished=False, delta=True) == "go st"
    assert detokenizer.update(encode(tokenizer, "op!")) == "stop"
    assert detokenizer.next_text(finished=True, delta=True) == "op"


def test_sentencepiece_spaces_follow_the_prompt() -> None:
    tokenizer = tiny.sentencepiece()
    the, bos = tokenizer.token_to_id("▁the"), tokenizer.bos_token_id
    assert the is not None and bos is not None
    for prompt, skip, text in (
        ([], True, "the"),
        ([bos], True, "the"),
        ([bos], False, " the"),
        ([the], True, " the"),
    ):
        detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
        detokenizer.update([the])
        assert detokenizer.next_text(finished=True, delta=True) == text


def test_a_prompt_of_special_tokens_only_costs_linear_time() -> None:
    tokenizer = tiny.byte_level()
    assert tokenizer.bos_token_id is not None
    detokenizer = IncrementalDetokenizer(tokenizer, [tokenizer.bos_token_id] * 200_000)
    detokenizer.update([0x61])
    assert detokenizer.next_text(finished=True, delta=True) == "a"


def test_long_repetitive_stop_strings_cost_linear_time() -> None:
    tokenizer = tiny.byte_level()
    stop = "a" * 20_000 + "b"
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=[stop])
    for _ in range(3):
        detokenizer.update([0x61] * 19_000 + [0x63])
    assert detokenizer.stop is None and detokenizer.num_held == 0


@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/qwen2", "tokenizers/gpt-neox-20b"])
def test_multilingual_text_token_by_token(name: str) -> None:
    import json

    tokenizer = load_tokenizer(shared(name))
    for line in shared("text/udhr_multilingual.jsonl").read_text(encoding="utf-8").splitlines():
        ids = encode(tokenizer, json.loads(line)["text"])
        detokenizer = IncrementalDetokenizer(tokenizer, ids[:5])
        joined = "".join(run(detokenizer, [[token_id] for token_id in ids[5:]]))
        assert joined == text_after(tokenizer, ids[:5], ids[5:])
        assert "\ufffd" not in joined


def test_golden_outputs_of_a_real_model() -> None:
    import json

    tokenizer = load_tokenizer(shared("models/stories260K"))
    lines = shared("models/stories260K/golden_greedy_fp32.jsonl").read_text(encoding="utf-8").splitlines()
    for golden in map(json.loads, lines):
        detokenizer = IncrementalDetokenizer(tokenizer, golden["prompt_ids"])
        detokenizer.update(golden["output_ids"])
        assert detokenizer.next_text(finished=True, delta=False).lstrip() == golden["output_text"].lstrip()
