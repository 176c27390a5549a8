"""A GGUF model in several files: found from the first or from the folder, checked, and read as the model in one file is."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from quire.config.types import LoadConfig
from quire.errors import ModelLoadError
from quire.loader import load_model
from quire.loader.configuration import checkpoint_in, files_of, part_names, read_checkpoint_fields
from quire.loader.gguf.parts import read_parts
from quire.server.checkpoint_facts import read_facts
from tests.loader.gguf.fuzzing import FUZZ_SECONDS, damage, reads_or_complains
from tests.loader.gguf.writing import all_in, write_model
from tests.models.checkpoints import make_model, weights_of
from tests.models.drive import make_config

_HEADER_BYTES = 2048
"""Of a part, with the metadata of splitting and most of its tensors."""
_SPLIT_BYTES = 100
"""Of its three keys about splitting, which follow each other."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The same model whole, in parts, and in parts of which the first has no tensors."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("parts")
    model = make_model("deepseek-v3", attention_bias=False)
    kinds = {"whole": {}, "cut": {"part_tensors": 7}, "empty-first": {"part_tensors": 7, "no_tensor_first": True}}
    for name, options in kinds.items():
        (root / name).mkdir()
        write_model(model, root / name / "small.gguf", all_in("F16"), **options)
    return {name: root / name for name in kinds}


def load(path: str) -> dict[str, torch.Tensor]:
    return weights_of(load_model(make_config(Path(path)).model, LoadConfig(), torch.device("cpu")))


@pytest.mark.parametrize("kind", ["cut", "empty-first"])
def test_parts_are_read_as_the_whole_is(folders, kind):
    first = Path(checkpoint_in(str(folders[kind]), "auto"))
    files = files_of(first)
    assert len(files) > 3 and first == files[0] and sorted(folders[kind].iterdir()) == files
    assert (len(gguf.GGUFReader(first).tensors) == 0) == (kind == "empty-first")
    whole = checkpoint_in(str(folders["whole"]), "auto")
    assert read_checkpoint_fields(first).values == read_checkpoint_fields(whole).values
    mine, wanted = load(str(first)), load(whole)
    assert mine.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(mine[name], weight), name


def test_what_is_told_of_a_model_counts_all_its_parts(folders):
    whole, cut = (read_facts(checkpoint_in(str(folders[kind]), "auto")) for kind in ("whole", "cut"))
    assert cut.num_parameters == whole.num_parameters > 0 and cut.dtype == whole.dtype
    assert cut.num_bytes == sum(file.stat().st_size for file in folders["cut"].iterdir())


def test_names_of_parts():
    assert part_names("a-00002-of-00003.gguf") == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert part_names("a-00001-of-00003.safetensors") is None and part_names("a-1-of-3.gguf") is None
    assert files_of("/models/a.gguf") == [Path("/models/a.gguf")]


@pytest.fixture
def parts(folders, tmp_path) -> list[Path]:
    """A copy of the parts, to be damaged."""
    return files_of(checkpoint_in(shutil.copytree(folders["cut"], tmp_path / "copy"), "auto"))


def test_a_missing_part(parts):
    parts[1].unlink()
    parts[2].unlink()
    with pytest.raises(ModelLoadError, match=f"of which 2 are missing .*: {parts[1].name}, {parts[2].name}$"):
        read_parts(parts[0])


def test_many_missing_parts(parts):
    for part in parts[1:]:
        part.unlink()
    first = parts[0].rename(parts[0].with_name("small-00001-of-99999.gguf"))
    with pytest.raises(ModelLoadError, match="split.count says"):
        read_parts(first)
    rewrite(first, ["a"], split__no=0, split__count=99_999)
    with pytest.raises(ModelLoadError, match="of which 99998 are missing") as raised:
        read_parts(first)
    assert str(raised.value).endswith("small-00006-of-99999.gguf, ...")


def damage_parts(parts: list[Path], num_runs: int, seconds: float) -> None:
    """One at a time, so often and at least so long."""
    rng, until, count = random.Random(0), time.monotonic() + seconds, 0
    whole = [part.read_bytes() for part in parts]
    num_bytes = sum(map(len, whole))
    while count < num_runs or time.monotonic() < until:
        index = rng.randrange(len(parts))
        at = whole[index].index(b"split.")
        begin, end = rng.choice([(0, _HEADER_BYTES), (at, at + _SPLIT_BYTES)])
        before, piece, after = whole[index][:begin], whole[index][begin:end], whole[index][end:]
        parts[index].write_bytes(before + damage(rng, piece) + after)
        reads_or_complains(lambda: read_parts(parts[0]), num_bytes)
        parts[index].write_bytes(whole[index])
        count += 1


def test_no_damage_of_a_part_crashes_or_takes_memory(parts):
    damage_parts(parts, num_runs=300, seconds=0)


@pytest.mark.slow
def test_no_damage_of_a_part_crashes_for_ten_minutes(parts):
    """QUIRE_FUZZ_SECONDS says for how long instead."""
    damage_parts(parts, num_runs=1, seconds=FUZZ_SECONDS)


def test_another_part_than_the_first(parts):
    with pytest.raises(ModelLoadError, match=f"{parts[2].name} is one of {len(parts)} parts: give the first, {parts[0].name}"):
        read_parts(parts[2])


def test_a_folder_without_the_first_part(parts):
    parts[0].unlink()
    with pytest.raises(ModelLoadError, match="holds no GGUF file .* that a model begins with"):
        checkpoint_in(str(parts[0].parent), "gguf")


def test_a_name_that_does_not_say_how_many(parts):
    renamed = parts[0].rename(parts[0].with_name("small.gguf"))
    with pytest.raises(ModelLoadError, match=rf"split.count says {len(parts)} parts, so its name must end in -00001-of-0000"):
        read_parts(renamed)


def test_parts_in_another_order(parts):
    parts[1].rename(parts[1].with_name("aside"))
    parts[2].rename(parts[1])
    parts[1].with_name("aside").rename(parts[2])
    with pytest.raises(ModelLoadError, match="split.no must be 1, as the file's name says, got 2"):
        read_parts(parts[0])


def rewrite(file: Path, tensors: list[str], **keys: int) -> None:
    writer = gguf.GGUFWriter(file, "deepseek2")
    for key, value in keys.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name in tensors:
        writer.add_tensor(name, np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_part_of_another_model(parts):
    rewrite(parts[1], ["a"], split__no=1, split__count=99)
    with pytest.raises(ModelLoadError, match=f"{parts[1].name}: metadata split.count must be {len(parts)}, .* got 99"):
        read_parts(parts[0])


def test_a_part_that_is_none(parts):
    rewrite(parts[1], ["a"])
    with pytest.raises(ModelLoadError, match=f"{parts[1].name}: metadata split.no is missing"):
        read_parts(parts[0])


def test_fewer_tensors_than_said(parts):
    count = sum(len(gguf.GGUFReader(part).tensors) for part in parts)
    rewrite(parts[1], ["a"], split__no=1, split__count=len(parts))
    with pytest.raises(ModelLoadError, match=rf"split.tensors.count must be {count - 6}, .* got {count}"):
        read_parts(parts[0])


def test_a_tensor_in_two_parts(parts):
    name = gguf.GGUFReader(parts[2]).tensors[0].name
    rewrite(parts[1], [name], split__no=1, split__count=len(parts))
    with pytest.raises(ModelLoadError, match=f"two of its parts have tensor '{name}'"):
        read_parts(parts[0])


def test_image_sides_and_measurements_are_no_models(tmp_path, folders):
    shutil.copytree(folders["cut"], tmp_path / "both")
    for name in ("mmproj-small.gguf", "small-mmproj-F16.gguf", "imatrix.gguf"):
        (tmp_path / "both" / name).write_bytes(b"GGUF")
    assert Path(checkpoint_in(str(tmp_path / "both"), "auto")).name.startswith("small-00001-of-")
    shutil.copy(folders["whole"] / "small.gguf", tmp_path / "both")
    with pytest.raises(ModelLoadError, match="holds 2 GGUF models: give one of them"):
        checkpoint_in(str(tmp_path / "both"), "auto")
