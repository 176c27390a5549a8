"""When a request ends (invariant 20)."""

from __future__ import annotations

from typing import Any

import pytest

from quire.core.request import Request, RequestStatus
from quire.core.stopping import append_tokens, max_num_tokens
from tests.core.harness import make_request

STOPPED, LENGTH = RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH


def request_with(max_tokens: int | None = 10, **params: Any) -> Request:
    request = make_request("r", [1, 2, 3], max_tokens, **params)
    request.max_num_tokens = max_num_tokens(request, max_model_len=100, num_slots=1000)
    return request


def test_end_of_sequence_has_no_stop_reason() -> None:
    request = request_with(eos_token_ids=[7, 8])
    assert append_tokens(request, [5, 8, 6]) is STOPPED
    assert request.output_token_ids == [5, 8] and request.stop_reason is None


def test_stop_token_is_the_stop_reason() -> None:
    request = request_with(stop_token_ids=[9])
    assert append_tokens(request, [9]) is STOPPED and request.stop_reason == 9


def test_end_of_sequence_goes_before_stop_token_ids() -> None:
    request = request_with(eos_token_ids=[9], stop_token_ids=[9])
    assert append_tokens(request, [9]) is STOPPED and request.stop_reason is None


def test_stop_goes_before_length() -> None:
    request = request_with(max_tokens=1, stop_token_ids=[9])
    assert append_tokens(request, [9]) is STOPPED
    assert append_tokens(request_with(max_tokens=1), [9]) is LENGTH


def test_ignore_eos_drops_only_the_eos_check() -> None:
    request = request_with(eos_token_ids=[7], stop_token_ids=[9], ignore_eos=True)
    assert append_tokens(request, [7, 7]) is None
    assert append_tokens(request, [9]) is STOPPED and request.stop_reason == 9
    both = request_with(eos_token_ids=[7], stop_token_ids=[7], ignore_eos=True)
    assert append_tokens(both, [7]) is STOPPED and both.stop_reason == 7


def test_min_tokens_holds_back_eos_and_stop_ids() -> None:
    request = request_with(eos_token_ids=[7], stop_token_ids=[9], min_tokens=3)
    assert append_tokens(request, [7, 9]) is None
    assert append_tokens(request, [7]) is STOPPED and request.num_output_tokens == 3


def test_min_tokens_does_not_hold_back_length() -> None:
    request = make_request("r", [1, 2, 3], None, min_tokens=50)
    request.max_num_tokens = max_num_tokens(request, max_model_len=5, num_slots=1000)
    assert append_tokens(request, [1, 1, 1]) is LENGTH and request.num_tokens == 5


@pytest.mark.parametrize(
    ("max_tokens", "max_model_len", "num_slots", "expected"),
    [
        (4, 100, 1000, 7),
        (None, 100, 1000, 100),
        (500, 100, 1000, 100),
        (500, 100, 64, 65),
        (None, 64, 64, 64),
    ],
)
def test_length_is_the_tightest_limit(
    max_tokens: int | None, max_model_len: int, num_slots: int, expected: int
) -> None:
    assert max_num_tokens(make_request("r", [1, 2, 3], max_tokens), max_model_len, num_slots) == expected
