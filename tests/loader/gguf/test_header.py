"""The header of a GGUF file: read as the `gguf` package reads it, and lies in it found before anything is taken."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.config.hf import config_of, read_fields
from quire.errors import ModelLoadError
from quire.loader.gguf.config import hf_fields
from quire.loader.gguf.header import read_header
from tests.loader.gguf.fuzzing import FUZZ_SECONDS, damage, reads_or_complains

CORPUS = Path(__file__).parent / "corpus"


def write(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "Ġé", ""])
    writer.add_token_scores([1.0, -2.5, 0.0])
    writer.add_add_bos_token(True)
    writer.add_array("llama.attention.head_count", [2, 2])
    writer.add_key_length(2)
    writer.add_tensor("blk.0.attn_q.weight", np.arange(64 * 3, dtype=np.float32).reshape(3, 64))
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), dtype=np.float32))
    blocks = gguf.quantize(np.ones((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("rope_freqs.weight", np.array([1.0, 2.0], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf").read_bytes()


def test_a_file_reads_as_the_package_reads_it(tmp_path):
    path = write(tmp_path / "small.gguf")
    header, reference = read_header(path), gguf.GGUFReader(path)
    assert header.architecture == "llama" and header.get("llama.block_count", int) == 1
    assert header.get("llama.attention.layer_norm_rms_epsilon", float) == pytest.approx(1e-5)
    assert header.get("tokenizer.ggml.add_bos_token", bool) is True
    assert header.array("tokenizer.ggml.tokens", str) == ["a", "Ġé", ""]
    assert header.array("tokenizer.ggml.scores", float) == [1.0, -2.5, 0.0]
    assert header.array("llama.attention.head_count", int) == [2, 2]
    assert header.array("tokenizer.ggml.merges", str) is None
    found = {info.name: info for info in header.tensors}
    assert set(found) == {tensor.name for tensor in reference.tensors}
    for tensor in reference.tensors:
        info = found[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist())) and info.type.name == tensor.tensor_type.name
        assert (info.start, info.num_bytes) == (tensor.data_offset, tensor.n_bytes)
    assert header.float32(found["rope_freqs.weight"]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        ("llama.block_count", str, "llama.block_count must be str, got 1"),
        ("general.architecture", int, "general.architecture must be int, got 'llama'"),
        ("llama.vocab_size", int, "llama.vocab_size is missing"),
        ("tokenizer.ggml.tokens", int, "must be int"),
    ],
)
def test_metadata_of_another_type(tmp_path, key, kind, message):
    header = read_header(write(tmp_path / "small.gguf"))
    with pytest.raises(ModelLoadError, match=message):
        header.get(key, kind)


def test_an_array_of_another_type(tmp_path):
    header = read_header(write(tmp_path / "small.gguf"))
    with pytest.raises(ModelLoadError, match="tokens must be an array of int, got 'strings'"):
        header.array("tokenizer.ggml.tokens", int)
    with pytest.raises(ModelLoadError, match="scores must be an array of int, got 'numbers of type float32'"):
        header.array("tokenizer.ggml.scores", int)
    with pytest.raises(ModelLoadError, match="block_count must be an array of int, got 1"):
        header.array("llama.block_count", int)


def replaced(data: bytes, after: bytes, offset: int, new: bytes) -> bytes:
    """The bytes with some of them changed, `offset` bytes past the end of `after`."""
    at = data.index(after) + len(after) + offset
    return data[:at] + new + data[at + len(new) :]


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


HUGE = u64(2**64 - 1)
LIES = {
    "another kind of file": (lambda d: b"GGML" + d[4:], "does not begin with GGUF"),
    "version 1": (lambda d: d[:4] + struct.pack("<I", 1) + d[8:], "versions 2 and 3"),
    "big-endian": (lambda d: d[:4] + struct.pack(">I", 3) + d[8:], "big-endian"),
    "tensors without end": (lambda d: d[:8] + HUGE + d[16:], "18446744073709551615 tensors"),
    "values without end": (lambda d: d[:16] + HUGE + d[24:], "18446744073709551615 metadata values"),
    "a key without end": (lambda d: d[:24] + HUGE + d[32:], "but the file ends at"),
    "a text that is not UTF-8": (lambda d: replaced(d, b"general.architecture", 4 + 8, b"\xff"), "is not UTF-8"),
    "strings without end": (lambda d: replaced(d, b"tokenizer.ggml.tokens", 8, HUGE), "strings in tokenizer.ggml.tokens"),
    "numbers without end": (lambda d: replaced(d, b"tokenizer.ggml.scores", 8, u64(2**62)), "but the file ends at"),
    "an array of arrays": (lambda d: replaced(d, b"tokenizer.ggml.scores", 4, struct.pack("<I", 9)), "array of type 9"),
    "an unknown value type": (lambda d: replaced(d, b"llama.block_count", 0, struct.pack("<I", 77)), "has type 77"),
    "five dimensions": (lambda d: replaced(d, b"output.weight", 0, struct.pack("<I", 5)), "1 to 4 dimensions, got 5"),
    "no rows": (lambda d: replaced(d, b"output.weight", 12, u64(0)), r"shape \[0, 64\]"),
    "half a block": (lambda d: replaced(d, b"output.weight", 4, u64(48)), r"whole blocks of 32, got shape \[4, 48\]"),
    "rows without end": (lambda d: replaced(d, b"output.weight", 12, HUGE), "it ends at byte"),
    "a type of no file": (lambda d: replaced(d, b"output.weight", 20, struct.pack("<I", 99)), "type 99"),
    "a tensor past the end": (lambda d: replaced(d, b"output.weight", 24, u64(2**63)), "it ends at byte"),
    "a tensor between places": (lambda d: replaced(d, b"rope_freqs.weight", 16, u64(1)), "no multiple of 32"),
    "a tensor over another": (lambda d: replaced(d, b"output.weight", 24, u64(768)), "lies over another"),
    "a file cut short": (lambda d: d[:-64], "it ends at byte"),
    "a header cut short": (lambda d: d[:100], "damaged"),
    "four bytes": (lambda d: d[:4], "damaged"),
    "a key twice": (lambda d: d.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores"), "comes twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(tmp_path, whole, lie):
    change, message = LIES[lie]
    path = tmp_path / "lying.gguf"
    path.write_bytes(change(whole))
    with pytest.raises(ModelLoadError, match=message):
        read_header(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="does not begin with GGUF"):
        read_header(tmp_path / "empty.gguf")


# -- arbitrary damage ------------------------------------------------------------------------------------------

def read_all(path: Path) -> None:
    """Everything that loading asks of a header."""
    header = read_header(path)
    for key in list(header.values):
        for kind in (str, int, float):
            try:
                header.array(key, kind)
            except ModelLoadError:
                continue
    config_of(read_fields(path, stated=hf_fields(header)), path)


def survives(path: Path, data: bytes) -> None:
    """Reads the file or complains; takes no memory to speak of."""
    path.write_bytes(data)
    reads_or_complains(lambda: read_all(path), len(data))


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file with some bytes changed, taken out or put in; numbers that lie are likely."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        new = draw(st.one_of(st.binary(max_size=9), st.sampled_from([HUGE, u64(2**31), u64(2**63), u64(0), b"\xff" * 4])))
        gone = draw(st.sampled_from([0, len(new), len(new), 8, len(data)]))
        data[at : at + gone] = new
    return bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_crashes_or_takes_memory(tmp_path, whole, data):
    survives(tmp_path / "damaged.gguf", data.draw(damaged(whole)))


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.glob("*.gguf")))
def test_the_corpus(tmp_path, name):
    survives(tmp_path / name, (CORPUS / name).read_bytes())


@pytest.mark.slow
def test_no_damage_crashes_for_ten_minutes(tmp_path, whole):
    """QUIRE_FUZZ_SECONDS says for how long instead."""
    rng, end, count = random.Random(0), time.monotonic() + FUZZ_SECONDS, 0
    while time.monotonic() < end:
        survives(tmp_path / "damaged.gguf", damage(rng, whole))
        count += 1
    assert count > 0
