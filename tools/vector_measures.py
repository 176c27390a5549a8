"""What docs/models.md says of an encoder, measured on one small checkpoint with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from quire import LLM
from quire.models.proven import Entry
from tests.models.encoders import LONGEST, draw_texts, hidden_states, make_encoder, pooled, save

TEXTS = draw_texts((1, 2, 15, 16, 17, 33, 49, LONGEST))
PROMPTS: list[Any] = [{"prompt_token_ids": ids} for ids in TEXTS]
PRECISIONS: list[dict[str, Any]] = [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int8"}]
SCHEDULES: list[dict[str, Any]] = [
    {"max_num_seqs": 1, "num_threads": 1},
    {"max_num_batched_tokens": 1024, "num_threads": 2},
    {"max_num_seqs": 3, "max_num_batched_tokens": 160, "num_threads": 1},
]
"""Texts one at a time, all in one step, a few at a time."""


def measure_encoder(shape: str, folder: Path) -> Entry:
    """The entry of `proven.json` without the architecture."""
    model = make_encoder(shape)
    path, is_classifier = save(model, folder), "Classification" in type(model).__name__
    found, expected = _vectors(path, is_classifier, dtype="float32"), [_expected(model, ids, is_classifier) for ids in TEXTS]
    error = max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
    same = all(_is_same_in_every_schedule(path, is_classifier, precision) for precision in PRECISIONS)
    reference = f"transformers {transformers.__version__}"
    return {"reference": reference, "max_vector_error": error, "same_in_every_schedule": same}


def _is_same_in_every_schedule(path: Path, is_classifier: bool, precision: dict[str, Any]) -> bool:
    first, *others = (_vectors(path, is_classifier, **precision, **schedule) for schedule in SCHEDULES)
    return all(other == first for other in others)


def _vectors(path: Path, is_classifier: bool, **options: Any) -> list[list[float]]:
    """Of each text the mean of its tokens' vectors, with length 1; or a classifier's numbers."""
    pooling: dict[str, Any] = {} if is_classifier else {"pooler_config": {"pooling_type": "MEAN"}}
    with LLM(str(path), skip_tokenizer_init=True, **pooling, **options) as llm:
        if is_classifier:
            return [output.outputs.data.tolist() for output in llm.encode(PROMPTS, use_tqdm=False)]
        return [list(output.outputs.embedding) for output in llm.embed(PROMPTS, use_tqdm=False)]


def _expected(model: Any, token_ids: list[int], is_classifier: bool) -> list[float]:
    """The same in transformers."""
    if not is_classifier:
        return pooled(hidden_states(model, token_ids), "mean")
    with torch.inference_mode():
        numbers: list[float] = model(torch.tensor([token_ids])).logits[0].tolist()
    return numbers
