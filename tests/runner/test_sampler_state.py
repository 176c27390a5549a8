"""RequestSamplingState: incremental counts equal a recount, drafts leave no trace, a rebuilt state is the same state."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from quire.runner.sampling_state import RequestSamplingState, SamplingRow, TokenCounts
from quire.sampling_params import SamplingParams

TOKENS = st.lists(st.integers(0, 200), max_size=300)


def as_dict(counts: TokenCounts) -> dict[int, float]:
    assert len(set(counts.ids.tolist())) == len(counts.ids)
    return dict(zip(counts.ids.tolist(), counts.counts.tolist()))


@given(prompt=TOKENS, output=TOKENS, drafts=TOKENS)
def test_counts_equal_a_recount(prompt, output, drafts):
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5)
    state = RequestSamplingState(params, 0, prompt, vocab_size=201)
    for token_id in output:
        state.append(token_id)
    expected = {token_id: 0 for token_id in prompt} | dict(Counter(output))
    assert as_dict(state.counts) == expected
    with state.ahead(drafts):
        assert as_dict(state.counts) == {token_id: 0 for token_id in prompt} | dict(Counter(output + drafts))
        assert state.output_token_ids == output + drafts
    assert as_dict(state.counts) == expected
    assert state.output_token_ids == output
    again = RequestSamplingState(params, 0, prompt, output, vocab_size=201)
    assert again.counts.ids.tolist() == state.counts.ids.tolist()
    assert again.num_tokens == state.num_tokens == len(prompt) + len(output)


def test_prompt_placeholders_outside_the_vocabulary_are_left_out():
    assert as_dict(TokenCounts([1, 500, 2, 1], vocab_size=100)) == {1: 0, 2: 0}


def test_counts_are_kept_only_where_penalties_need_them():
    assert RequestSamplingState(SamplingParams(), 0, [1], [2], vocab_size=9).counts is None
    only_output = RequestSamplingState(SamplingParams(presence_penalty=1.0), 0, [1], [2], vocab_size=9)
    assert as_dict(only_output.counts) == {2: 1}


def test_position_counts_prompt_output_and_drafts():
    state = RequestSamplingState(SamplingParams(), 0, [1, 2, 3], [4], vocab_size=9)
    assert SamplingRow(state).position == 4
    assert SamplingRow(state, [5, 6]).position == 6
    state.append(5)
    assert SamplingRow(state).position == 5
