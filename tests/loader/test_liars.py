"""Checkpoint files that lie: an error with the file's name, never a crash, and never much more memory than the file has."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from quire.errors import ModelLoadError
from quire.loader.formats import read_weights
from tests.loader.liars import SAFETENSORS_LIARS, entry, pickled_liars, read_all, safetensors

REPOSITORY = Path(__file__).parents[2]
SLACK = 48 * 2**20
"""Of memory beside twice the file: what the first tensors of a process load of torch."""


def put(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(content)
    return folder / name


def read_apart(files: list[Path]) -> list[tuple[str, int, str]]:
    """(file, bytes that reading it added, outcome) of each, read in another process, which must come to its end."""
    command = [sys.executable, "-m", "tests.loader.liars", *map(str, files)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("lie", SAFETENSORS_LIARS)
def test_safetensors_that_lie_are_refused(tmp_path, lie):
    file = put(tmp_path, SAFETENSORS_LIARS[lie])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read as safetensors: .") as error:
        read_all(file)
    assert len(str(error.value)) < 1000


def test_pickles_that_lie_are_refused(tmp_path):
    for lie, content in pickled_liars(tmp_path).items():
        file = put(tmp_path / lie, content, "pytorch_model.bin")
        with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin") as error:
            read_all(file)
        assert len(str(error.value)) < 1000, lie


def test_none_of_them_takes_memory(tmp_path):
    files = [put(tmp_path / str(i), content) for i, content in enumerate(SAFETENSORS_LIARS.values())]
    for i, content in enumerate(pickled_liars(tmp_path).values()):
        files.append(put(tmp_path / f"p{i}", content, "pytorch_model.bin"))
    results = read_apart(files)
    assert len(results) == len(files)
    for name, growth, outcome in results:
        assert outcome.startswith("refused"), name
        assert growth <= 2 * Path(name).stat().st_size + SLACK, name


def test_honest_files_are_read(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(0), "c": torch.tensor(1, dtype=torch.int8)}
    assert sorted(read_all(put(tmp_path / "s", save(tensors, {"format": "pt"})))) == ["a", "b", "c"]
    for name, is_zip in (("new", True), ("old", False)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "pytorch_model.bin"
        torch.save(tensors | {"shared": tensors["a"][1]}, file, _use_new_zipfile_serialization=is_zip)
        assert sorted(read_all(file)) == ["a", "b", "c", "shared"]


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "deep/model.safetensors", "..", "", 5, ["a"]])
def test_an_index_reaches_no_other_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelLoadError, match="index"):
        read_weights(str(tmp_path))


# -- drawn lies ----------------------------------------------------------------------------------------------

_odd_numbers = st.sampled_from(
    [-1, 0, 1, 2, 4, 8, 16, 32, 63, 64, 65, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**30, 0.5, None, "4", True]
)
_shapes = st.lists(_odd_numbers, max_size=4) | st.sampled_from([[4, 4], [16], [8], [], "16", {}])
_dtypes = st.sampled_from(["F32", "F16", "BF16", "I8", "BOOL", "F64", "F4", "F8_E4M3", "C64", "", "f32", None, 7])
_offsets = st.lists(_odd_numbers, max_size=3) | st.sampled_from([[0, 64], [0, 32], [32, 64], [64, 64]])
_entries = st.builds(entry, _dtypes, _shapes, _offsets) | st.sampled_from([None, [], {}, "x", {"dtype": "F32"}])
_headers = st.dictionaries(st.sampled_from(["a", "b", "", "__metadata__", "\x00", "ü" * 50]), _entries, max_size=4)
_lying_files = st.builds(safetensors, _headers, st.binary(max_size=80), st.none() | st.integers(0, 2**64 - 1))


@st.composite
def spoiled(draw: st.DrawFn, honest: bytes) -> bytes:
    """An honest file with a few bytes changed, or cut."""
    content = bytearray(honest)
    for place in draw(st.lists(st.integers(0, len(honest) - 1), min_size=1, max_size=4)):
        content[place] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


def _honest_pickle(is_zip: bool) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"a": torch.arange(16.0), "b": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


_safetensors_files = _lying_files | spoiled(save({"a": torch.arange(16.0), "b": torch.zeros(3, dtype=torch.int8)}))
_pickled_files = spoiled(_honest_pickle(True)) | spoiled(_honest_pickle(False))


def check_drawn(folder: Path, content: bytes, name: str) -> None:
    """Read, or refused in words; tensors that were read lie within the file."""
    file = put(folder, content, name)
    try:
        for _, tensor in read_weights(str(folder)):
            assert tensor.numel() * tensor.element_size() <= len(content)
    except ModelLoadError as error:
        assert str(file) in str(error)


FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FAST
@given(content=_safetensors_files)
def test_drawn_safetensors(tmp_path, content):
    check_drawn(tmp_path / "s", content, "model.safetensors")


@FAST
@given(content=_pickled_files)
def test_drawn_pickles(tmp_path, content):
    check_drawn(tmp_path / "p", content, "pytorch_model.bin")


FUZZ = """
import sys, tempfile, time
from pathlib import Path
from hypothesis import HealthCheck, Phase, given, seed, settings
import quire.loader.formats, torch
from tests.loader import test_liars
from tests.loader.liars import highest_memory

kind, number, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
files = {"model.safetensors": test_liars._safetensors_files, "pytorch_model.bin": test_liars._pickled_files}[kind]
end, count, folder = time.monotonic() + seconds, 0, Path(tempfile.mkdtemp())
torch.zeros(4).sum()
while time.monotonic() < end:
    number += 1

    @seed(number)
    @settings(max_examples=500, deadline=None, database=None, phases=[Phase.generate])
    @given(content=files)
    def look(content):
        global count
        count += 1
        test_liars.check_drawn(folder, content, kind)

    look()
print(count, highest_memory())
"""
FUZZ_S = 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_fuzz(kind):
    """Five minutes each, in a process that may neither die nor grow."""
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, kind, str(int(time.time()))]
    done = subprocess.run(
        [*command, str(FUZZ_S)], cwd=REPOSITORY, capture_output=True, text=True, timeout=FUZZ_S + 300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    count, memory = map(int, done.stdout.split())
    assert count > 1000 and memory < 1.5e9
