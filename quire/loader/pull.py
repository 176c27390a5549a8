"""`pull`: a model from the Hugging Face hub as a folder, with progress; also `python -m quire.loader.pull`, which a server
runs in a process of its own so that it can end it at any time.

Whatever stops it, a model's folder is whole or not there; what was downloaded already waits beside it for the next try.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire import envs
from quire.errors import HubError, QuireError
from quire.loader.configuration import is_gguf
from quire.loader.hub import hub_errors, wanted_files
from quire.loader.hub_name import parse_hub_name

_POLL_S = 0.2

Report = Callable[[dict[str, Any]], None]
"""Hears of the progress: {"status": ...}, with digest, total and completed (bytes) while a file comes."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository."""

    name: str
    size: int
    digest: str
    """`sha256:...` of its content for large files, else the hub's own id of the version."""
    is_sha256: bool

    @property
    def place(self) -> str:
        """Its path in the model's folder; a GGUF file lies in it, wherever the repository has it."""
        return self.name.rpartition("/")[2] if is_gguf(self.name) else self.name


@dataclass(frozen=True, slots=True)
class Pull:
    """What to fetch, and where it goes."""

    name: str
    """See `quire.loader.hub_name`; a tag that is no quantization is the revision."""
    target: str
    """The model's folder."""
    draft: str
    """A folder on the same disk, where the files gather."""


def pull(what: Pull, report: Report) -> None:
    """Fetch configuration, tokenizer and weights. Raises HubError."""
    report({"status": "pulling manifest"})
    with hub_errors("model", parse_hub_name(what.name).repo, parse_hub_name(what.name).revision):
        files = _list_files(what)
        target, draft = Path(what.target), Path(what.draft)
        if not all(_is_same(target / file.place, file) for file in files):
            for file in files:
                _fetch(what, file, draft, report)
            _verify(files, draft, report)
            report({"status": "writing manifest"})
            for file in files:
                _put_in_place(draft, file)
            _replace(draft, target)
    report({"status": "success"})


def _list_files(what: Pull) -> list[RemoteFile]:
    import huggingface_hub

    wanted = parse_hub_name(what.name)
    api = huggingface_hub.HfApi(token=envs.hf_token())
    info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    found = {file.rfilename: file for file in info.siblings or ()}
    names = wanted_files(list(found), wanted)
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise HubError(f"{wanted.repo} has a file that does not belong in a folder: {name!r}")
    if "config.json" not in names and not all(map(is_gguf, names)):
        raise HubError(f"{wanted.repo} has no config.json: it is not a checkpoint that can be served")
    return [_as_remote_file(found[name]) for name in sorted(names)]


def _as_remote_file(sibling: Any) -> RemoteFile:
    sha256 = None if sibling.lfs is None else sibling.lfs.sha256
    digest = sha256 or hashlib.sha256(f"{sibling.rfilename} {sibling.blob_id}".encode()).hexdigest()
    return RemoteFile(sibling.rfilename, sibling.size or 0, f"sha256:{digest}", sha256 is not None)


def _fetch(what: Pull, file: RemoteFile, draft: Path, report: Report) -> None:
    """Download one file; the thread does the work while this one looks at how much has come."""
    failure: list[BaseException] = []
    wanted = parse_hub_name(what.name)

    def download() -> None:
        import huggingface_hub

        try:
            huggingface_hub.hf_hub_download(
                wanted.repo, file.name, revision=wanted.revision, local_dir=draft, token=envs.hf_token()
            )
        except BaseException as error:
            failure.append(error)

    progress = {"status": f"pulling {file.digest[7:19]}", "digest": file.digest, "total": file.size}
    report(progress | {"completed": 0})
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    last = 0
    while thread.is_alive():
        thread.join(_POLL_S)
        completed = min(file.size, _partial_bytes(draft))
        if completed > last and thread.is_alive():
            report(progress | {"completed": completed})
            last = completed
    if failure:
        raise failure[0]
    report(progress | {"completed": file.size})


def _partial_bytes(draft: Path) -> int:
    """Bytes of the file that is on its way; the hub's client keeps it beside its notes."""
    partial = (draft / ".cache").rglob("*.incomplete")
    return sum(_size(file) or 0 for file in partial)


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _is_same(path: Path, file: RemoteFile) -> bool:
    return _size(path) == file.size and (not file.is_sha256 or _sha256(path) == file.digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()


def _verify(files: list[RemoteFile], draft: Path, report: Report) -> None:
    report({"status": "verifying sha256 digest"})
    for file in files:
        if file.is_sha256 and _sha256(draft / file.name) != file.digest:
            (draft / file.name).unlink()  # the next try fetches it again
            raise HubError(f"{file.name} arrived damaged: its sha256 is not {file.digest[7:]}; pull again")


def _put_in_place(draft: Path, file: RemoteFile) -> None:
    """Out of the folders that it had in the repository, which go where they are left empty."""
    (draft / file.name).rename(draft / file.place)
    for folder in Path(file.name).parents:
        if file.place != file.name and folder != Path(".") and not any((draft / folder).iterdir()):
            (draft / folder).rmdir()


def _replace(draft: Path, target: Path) -> None:
    """The draft becomes the model; an older version of it goes."""
    shutil.rmtree(draft / ".cache", ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    old = draft.with_name(draft.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """One JSON object per line on standard output, the last of them `success` or {"error": ...}."""
    what = Pull(**json.loads(sys.argv[1]))

    def report(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    try:
        pull(what, report)
    except QuireError as error:
        report({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
