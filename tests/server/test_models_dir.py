"""The models folder: names, what is found, and that nothing outside it is ever touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.errors import InvalidRequestError, UnknownModelError
from quire.server.models_dir import Checkpoint, ModelsDir, full_name, plain_name
from tests.server.fake_models import add_checkpoint

ESCAPES = ["../outside", "a/../../outside", "/outside", "..", ".", "", "a/./b", "~", "a\0b", ".hidden", "a/.b", "a:../b"]


@pytest.fixture
def catalog(tmp_path: Path) -> ModelsDir:
    root = tmp_path / "models"
    for name in ("b", "a:int8", "owner/c", "owner/c:v2", "latest:latest", ".hidden", "with space"):
        add_checkpoint(root, name)
    (root / "empty").mkdir()
    (root / "file").write_text("not a folder")
    add_checkpoint(tmp_path, "outside")
    return ModelsDir(root)


def test_names(catalog: ModelsDir) -> None:
    assert catalog.names() == ["a:int8", "b", "latest", "owner/c", "owner/c:v2"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("b", "b"),
        ("b:latest", "b"),
        ("a:int8", "a:int8"),
        ("latest", "latest:latest"),
        ("hf.co/owner/c", "owner/c"),
        ("huggingface.co/owner/c:v2", "owner/c:v2"),
    ],
)
def test_find(catalog: ModelsDir, name: str, folder: str) -> None:
    assert catalog.find(name).folder == catalog.root / folder


@pytest.mark.parametrize("name", ["a", "b:v2", "empty", "file", "owner", "with space", "x" * 300, *ESCAPES])
def test_not_found(catalog: ModelsDir, name: str) -> None:
    with pytest.raises(UnknownModelError):
        catalog.find(name)


def test_models_come_and_go(catalog: ModelsDir) -> None:
    add_checkpoint(catalog.root, "new")
    assert catalog.find("new").name == "new" and "new" in catalog.names()


def test_names_with_and_without_tag() -> None:
    assert (full_name("a"), full_name("a:b"), full_name("h:1/a")) == ("a:latest", "a:b", "h:1/a:latest")
    assert (plain_name("a:latest"), plain_name("hf.co/a/b:c")) == ("a", "a/b:c")


def test_gguf_files_are_models(tmp_path: Path) -> None:
    alone, several = tmp_path / "owner" / "alone:Q4_K_M", tmp_path / "owner" / "several"
    for folder, names in {
        tmp_path: ["direct.Q8_0.gguf", "mmproj-direct.gguf"],
        alone: ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"],
        several: ["x-Q4_0.gguf", "x-BF16-00001-of-00002.gguf", "x-BF16-00002-of-00002.gguf"],
    }.items():
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_bytes(b"GGUF")
    catalog = ModelsDir(tmp_path)
    assert catalog.names() == ["direct.Q8_0", "owner/alone:Q4_K_M", "owner/several/x-BF16", "owner/several/x-Q4_0"]
    assert catalog.find("direct.Q8_0.gguf:latest").folder == tmp_path / "direct.Q8_0.gguf"
    assert catalog.find("owner/alone:Q4_K_M").folder == alone
    assert catalog.find("owner/several/x-BF16").folder == several / "x-BF16-00001-of-00002.gguf"
    for name in ("owner/several", "mmproj-direct", "owner/several/x-BF16-00002-of-00002"):
        with pytest.raises(UnknownModelError):
            catalog.find(name)
    catalog.copy("owner/several/x-BF16", "copied")
    assert sorted(file.name for file in catalog.find("copied").folder.iterdir()) == [
        "x-BF16-00001-of-00002.gguf",
        "x-BF16-00002-of-00002.gguf",
    ]
    catalog.remove("owner/several/x-BF16")
    # The one that is left has the folder to itself.
    assert catalog.names() == ["copied", "direct.Q8_0", "owner/alone:Q4_K_M", "owner/several"]
    assert [file.name for file in several.iterdir()] == ["x-Q4_0.gguf"]
    catalog.remove("owner/several")
    assert not several.exists() and alone.exists()


def test_the_layout_of_the_hub_cache(tmp_path: Path) -> None:
    repo = tmp_path / "models--owner--name"
    add_checkpoint(repo / "snapshots", "1111")
    add_checkpoint(repo / "snapshots", "2222")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("2222")
    catalog = ModelsDir(tmp_path)
    assert catalog.names() == ["owner/name"]
    assert catalog.find("owner/name").folder.name == "2222"
    catalog.remove("owner/name")
    assert not repo.exists()


def test_a_model_from_elsewhere_is_the_first(tmp_path: Path, catalog: ModelsDir) -> None:
    both = ModelsDir(catalog.root, Checkpoint("/some/where", tmp_path / "outside"))
    assert both.names()[:2] == ["/some/where", "a:int8"]
    assert both.find("/some/where:latest").folder == tmp_path / "outside"
    with pytest.raises(InvalidRequestError, match="does not lie in the models folder"):
        both.remove("/some/where")
    assert (tmp_path / "outside").exists()


def test_remove(catalog: ModelsDir) -> None:
    catalog.remove("owner/c:latest")
    assert catalog.names() == ["a:int8", "b", "latest", "owner/c:v2"]
    catalog.remove("owner/c:v2")
    assert not (catalog.root / "owner").exists()
    assert sorted(path.name for path in catalog.root.iterdir() if path.name.startswith(".")) == [".hidden"]


@pytest.mark.parametrize("name", ESCAPES)
def test_remove_stays_inside(catalog: ModelsDir, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownModelError):
        catalog.remove(name)
    assert (tmp_path / "outside" / "config.json").exists()


def test_links_are_removed_not_followed(catalog: ModelsDir, tmp_path: Path) -> None:
    (catalog.root / "link").symlink_to(tmp_path / "outside")
    (catalog.root / "folder").symlink_to(tmp_path)
    catalog.remove("link")
    assert not (catalog.root / "link").is_symlink()
    with pytest.raises(InvalidRequestError, match="does not lie in the models folder"):
        catalog.remove("folder/outside")
    assert (tmp_path / "outside" / "config.json").exists()


def test_copy(catalog: ModelsDir) -> None:
    (catalog.root / "b" / "model.safetensors").write_bytes(b"weights")
    catalog.copy("b", "team/new:v1")
    folder = catalog.find("team/new:v1").folder
    assert (folder / "model.safetensors").stat().st_ino == (catalog.root / "b" / "model.safetensors").stat().st_ino
    assert (folder / "config.json").stat().st_ino != (catalog.root / "b" / "config.json").stat().st_ino
    catalog.remove("b")
    assert (folder / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["owner/c", "b/inside", *ESCAPES])
def test_where_a_copy_cannot_go(catalog: ModelsDir, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="destination"):
        catalog.copy("b", name)


def test_one_fetch_at_a_time(catalog: ModelsDir) -> None:
    with catalog.claim("new/model") as (target, draft):
        assert target == catalog.root / "new/model" and draft.parent == catalog.root
        with pytest.raises(InvalidRequestError, match="is being pulled already"):
            with catalog.claim("new/model"):
                raise AssertionError
    with catalog.claim("new/model"):
        pass
