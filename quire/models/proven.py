"""What was measured of each architecture and each checkpoint format: `proven.json`, written by `python -m tools.models_page`.

An entry of "architectures" is one small checkpoint of random weights, an entry of "formats" one quantized checkpoint. Fields that
a kind of model does not have are absent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("proven.json")
MAX_LOGPROB_ERROR = 1e-4
"""Between Quire and the reference, both in float32; also how close two tokens must be for either to be right."""
MAX_VECTOR_ERROR = 1e-4
"""The same for a number of an encoder's vector of length 1, or of a classifier's output."""

Entry = dict[str, Any]


def read_proven() -> dict[str, dict[str, Entry]]:
    """{"architectures": {checkpoint: entry}, "formats": {format: entry}}."""
    found: dict[str, dict[str, Entry]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def is_green(entry: Entry) -> bool:
    """Whether all that was measured of an architecture is as it must be."""
    return (
        entry.get("prompts_equal", 0) == entry.get("prompts", 0)
        and entry.get("max_logprob_error", 0.0) <= MAX_LOGPROB_ERROR
        and entry.get("max_vector_error", 0.0) <= MAX_VECTOR_ERROR
        and entry.get("same_in_every_schedule", True)
    )


def proven_architectures() -> set[str]:
    """Those of which every checkpoint that was measured is green."""
    entries = read_proven()["architectures"].values()
    red = {entry["architecture"] for entry in entries if not is_green(entry)}
    return {entry["architecture"] for entry in entries} - red
