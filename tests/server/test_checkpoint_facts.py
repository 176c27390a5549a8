"""What is read from a checkpoint folder without loading it, and durations."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from quire.server.checkpoint_facts import read_facts
from quire.server.durations import parse_duration, rfc3339
from tests.server.fake_models import add_checkpoint


def add_weights(folder: Path, name: str = "model.safetensors", **tensors: tuple[str, list[int]]) -> None:
    """A safetensors file with a header alone."""
    header = {key: {"dtype": dtype, "shape": shape} for key, (dtype, shape) in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)


def test_headers(tmp_path: Path) -> None:
    folder = add_checkpoint(tmp_path, "a", hidden_size=8)
    add_weights(folder, "1.safetensors", a=("BF16", [3, 4]), norm=("F32", [4]))
    add_weights(folder, "2.safetensors", b=("BF16", []))
    facts = read_facts(folder)
    assert (facts.num_parameters, facts.dtype, facts.family) == (17, "BF16", "llama")
    assert facts.num_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert facts.number("n_embd", "hidden_size") == 8 and facts.number("n_layer") is None
    assert len(facts.digest) == 64 and int(facts.digest, 16)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    folder = add_checkpoint(tmp_path, "a")
    before = read_facts(folder).digest
    assert before == read_facts(folder).digest == read_facts(add_checkpoint(tmp_path, "b")).digest
    add_weights(folder, a=("F16", [2]))
    assert read_facts(folder).digest != before
    assert read_facts(folder).dtype == "F16"


@pytest.mark.parametrize("damage", [b"", b"short", struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"[1]x"])
def test_damaged_files_make_facts_unknown(tmp_path: Path, damage: bytes) -> None:
    folder = add_checkpoint(tmp_path, "a")
    (folder / "model.safetensors").write_bytes(damage)
    assert read_facts(folder).num_parameters == 0
    (folder / "config.json").write_bytes(damage)
    assert read_facts(folder).family == "unknown"
    assert read_facts(tmp_path / "absent").num_bytes == 0


def test_pickled_weights_are_guessed_from_their_size(tmp_path: Path) -> None:
    folder = add_checkpoint(tmp_path, "a", torch_dtype="float32")
    (folder / "pytorch_model.bin").write_bytes(b"x" * 400)
    assert (read_facts(folder).num_parameters, read_facts(folder).dtype) == (100, "F32")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), ("90s", 90), ("300", 300), (300, 300), (0.5, 0.5),
        ("0", 0), (0, 0), (-1, math.inf), ("-1", math.inf), ("-1m", math.inf), ("+2s", 2),
    ],
)  # fmt: skip
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5 m", "5x", "1h30", "m5", "soon", True, math.nan])
def test_wrong_durations(text: str | float) -> None:
    with pytest.raises(ValueError, match="must be seconds or a duration"):
        parse_duration(text)


def test_moments() -> None:
    assert rfc3339(0.5) == "1970-01-01T00:00:00.500000Z"
    assert rfc3339(math.inf) == rfc3339(1e20) == "9999-12-31T23:59:59.999999Z"
