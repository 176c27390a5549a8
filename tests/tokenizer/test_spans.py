"""`encode_spans`: which characters a token covers."""

from __future__ import annotations

import pytest

from quire.tokenizer import Tokenizer, load_tokenizer
from tests.shared_data import shared

TEXT = "Once upon a time, there was a naïve 漢字 🙂 end."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(str(shared("models/stories260K")))


@pytest.mark.parametrize("method", ["the backend's offsets", "by search"])
def test_spans_cover_the_text_in_order(tokenizer: Tokenizer, method: str) -> None:
    encode = tokenizer.encode_spans if method != "by search" else lambda *a: Tokenizer.encode_spans(tokenizer, *a)
    spans = encode(TEXT, True)
    assert [token_id for token_id, _, _ in spans] == tokenizer.encode(TEXT)
    assert spans[0] == (tokenizer.bos_token_id, 0, 0)
    ends = [0]
    for _, start, end in spans:
        assert 0 <= start <= end <= len(TEXT)
        ends.append(end)
    assert ends == sorted(ends)
    assert ends[-1] == len(TEXT)
    words = [TEXT[start:end].strip() for _, start, end in spans]
    assert {"time", "was", "a"} & set(words)
