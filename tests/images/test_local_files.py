"""file:// addresses: below one folder, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quire.errors import InvalidRequestError
from quire.images import local_files
from quire.images.local_files import read_local


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file beside it."""
    inside = tmp_path / "pictures"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "a b.png").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "pictures-too").mkdir()
    (tmp_path / "pictures-too" / "a").write_bytes(b"secret")
    return inside


def refusal(url: str, folder: Path | None) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        read_local(url, None if folder is None else str(folder), "image")
    assert raised.value.parameter == "image"
    return str(raised.value)


def test_a_file_below_the_folder(folder: Path) -> None:
    assert read_local(f"file://{folder}/deep/a%20b.png", str(folder), "image") == b"picture"
    assert read_local(f"file://localhost{folder}/deep/../deep/a%20b.png", str(folder), "image") == b"picture"


def test_nothing_is_read_unless_a_folder_was_named(folder: Path) -> None:
    assert "--allowed-local-media-path" in refusal(f"file://{folder}/deep/a%20b.png", None)


@pytest.mark.parametrize(
    "path",
    [
        "/../secret", "/deep/../../secret", "/%2e%2e/secret", "/..%2fsecret", "-too/a", "/../no-such-file", "/link",
        "/folder-link/a", "",
    ],
)  # fmt: skip
def test_nothing_elsewhere_is_read_nor_told_of(folder: Path, path: str) -> None:
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "folder-link").symlink_to(folder.parent / "pictures-too")
    rule = "must name a file below the folder that --allowed-local-media-path gives"
    assert refusal(f"file://{folder}{path}", folder) == f"image {rule}"


def test_other_hosts_are_refused(folder: Path) -> None:
    assert "must name a file below" in refusal(f"file://elsewhere{folder}/deep/a%20b.png", folder)


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert "must name a file, not a folder or a device" in refusal(f"file://{folder}/pipe", folder)
    assert "Is a directory" in refusal(f"file://{folder}/deep", folder)
    assert "cannot be read: No such file" in refusal(f"file://{folder}/missing", folder)
    assert refusal(f"file://{folder}/%00", folder)


def test_a_large_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "MAX_BYTES", 6)
    assert "names a file of more than 6 bytes" in refusal(f"file://{folder}/deep/a%20b.png", folder)
