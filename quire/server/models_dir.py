"""`ModelsDir`: a folder of checkpoint folders as a catalog of models. Which names there are, where they lie, copies and
deletion.

A checkpoint folder has a config.json, or one GGUF model and no folders. Its name is its path below the models folder: `qwen`,
`qwen:int8`, `owner/model`. A GGUF file elsewhere is a model too, `owner/model-Q8_0` for owner/model-Q8_0.gguf.
The layout of the Hugging Face cache (`models--owner--name/snapshots/...`) is read as `owner/name`.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quire.errors import InvalidRequestError, UnknownModelError, describe
from quire.loader.configuration import files_of, gguf_models_in
from quire.loader.hub_name import HUB_HOSTS, parse_hub_name
from quire.log import get_logger, warn_once

_log = get_logger(__name__)

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,2}}(?::{_PART})?")
"""No part begins with a dot, so no name leads out of the folder or to what is hidden in it."""
_MAX_NAME_CHARS = 255
_MAX_DEPTH = 3
_HUB_CACHE_PREFIX = "models--"
_LATEST = ":latest"
_GGUF_ENDING = re.compile(r"(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
"""What the name of a GGUF model's first file has behind the model's."""
_WEIGHTS = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model on disk."""

    name: str
    """Without `:latest`."""
    folder: Path
    """Or the first file of a GGUF model that does not have a folder to itself."""


def plain_name(name: str) -> str:
    """A model's name without the hub's host, the tag that everybody means, and a file's folders on the hub and its ending."""
    for host in HUB_HOSTS:
        name = name.removeprefix(host)
    hub = parse_hub_name(name)
    if hub.file is not None:
        name = f"{hub.repo}/{hub.file.rpartition('/')[2]}"
    return _GGUF_ENDING.sub("", name.removesuffix(_LATEST))


def full_name(name: str) -> str:
    """A model's name with its tag, `latest` where it has none."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST


def check_name(name: str, parameter: str = "model") -> str:
    """The plain name. Raises InvalidRequestError for what cannot name a model here."""
    plain = plain_name(name)
    if len(plain) > _MAX_NAME_CHARS or not _NAME.fullmatch(plain):
        raise InvalidRequestError(
            f"invalid model name: {parameter} must be name[:tag] or owner/name[:tag] of letters, digits, '.', '_' "
            f"and '-', got {describe(name)}",
            parameter=parameter,
            value=name,
        )
    return plain


class ModelsDir:
    """The catalog. It looks at the disk at every question, so that models may come and go while a server runs."""

    def __init__(self, root: Path, extra: Checkpoint | None = None) -> None:
        """`extra`: a model from elsewhere that comes first in the list; it cannot be deleted here."""
        self.root = root
        self._extra = extra
        self._claimed: set[Path] = set()

    def names(self) -> list[str]:
        """Every model's name, the extra one first, then by alphabet."""
        found = sorted({checkpoint.name for checkpoint in self._scan(self.root, "", 1)})
        if self._extra is None:
            return found
        return [self._extra.name, *(name for name in found if name != self._extra.name)]

    def find(self, name: str) -> Checkpoint:
        """The model of that name, with or without `:latest`. Raises UnknownModelError."""
        plain = plain_name(name)
        if self._extra is not None and plain == plain_name(self._extra.name):
            return self._extra
        if len(plain) <= _MAX_NAME_CHARS and _NAME.fullmatch(plain):
            for folder in (self.root / plain, self.root / (plain + _LATEST), self._hub_cache_snapshot(plain)):
                if folder is not None and _is_checkpoint(folder):
                    return Checkpoint(plain, folder)
            file = _gguf_file(self.root / plain)
            if file is not None:
                return Checkpoint(plain, file)
        names = ", ".join(self.names()) or "none yet"
        raise UnknownModelError(
            f"The model {describe(name)} does not exist. This server serves: {names}", parameter="model", value=name
        )

    def folder_for(self, name: str, parameter: str = "model") -> Path:
        """Where a new model of that name belongs. Raises InvalidRequestError for a name that cannot be or is taken."""
        plain = check_name(name, parameter)
        for part in (self.root / plain).relative_to(self.root).parents:
            if part != Path(".") and _is_checkpoint(self.root / part):
                raise InvalidRequestError(
                    f"{parameter} cannot be {describe(plain)}: {part} is a model itself", parameter=parameter
                )
        return self.root / plain

    def copy(self, source: str, destination: str) -> None:
        """A second model with the same files; weights are linked, not copied, where the disk can.

        Raises UnknownModelError for the source, InvalidRequestError for a destination that exists or cannot be.
        """
        folder, target = self.find(source).folder, self.folder_for(destination, "destination")
        if target.exists():
            raise InvalidRequestError(
                f"destination {describe(destination)} exists already; delete it first", parameter="destination"
            )
        draft = self.hidden_folder()
        if folder.is_dir():
            shutil.copytree(folder, draft, copy_function=_link_or_copy)
        else:
            draft.mkdir()
            for file in files_of(folder):
                _link_or_copy(str(file), str(draft / file.name))
        self.put(draft, target)

    def remove(self, name: str) -> None:
        """Delete a model's files. Raises UnknownModelError, or InvalidRequestError for one that lies elsewhere."""
        checkpoint = self.find(name)
        folder = self._owned_folder(checkpoint)
        if folder.is_symlink() and folder.is_dir():
            folder.unlink()  # what it points to is not ours
            return
        trash = self.hidden_folder()
        if folder.is_dir():
            folder.rename(trash)  # never half a model in the catalog
        else:
            trash.mkdir()
            for file in files_of(folder):  # the first first: without it the others are no model
                file.rename(trash / file.name)
        shutil.rmtree(trash)
        _remove_empty(folder.parent, self.root)

    def hidden_folder(self) -> Path:
        """A path for a folder in the making, on the same disk, that the catalog does not show."""
        return self.root / f".quire-{uuid.uuid4().hex}"

    @contextmanager
    def claim(self, name: str) -> Iterator[tuple[Path, Path]]:
        """(where a model that is being fetched will be, where its files gather), for one fetch at a time.

        The second folder has the same path at every try, so that a fetch goes on where it stopped. Raises
        InvalidRequestError while another one is under way.
        """
        target = self.folder_for(name)
        if target in self._claimed:
            raise InvalidRequestError(f"model {describe(name)} is being pulled already", parameter="model", value=name)
        self._claimed.add(target)
        try:
            yield target, self.root / (".pull-" + plain_name(name).replace("/", "--"))
        finally:
            self._claimed.discard(target)

    def put(self, draft: Path, target: Path) -> None:
        """Make a finished folder a model of the catalog."""
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(target)

    def _owned_folder(self, checkpoint: Checkpoint) -> Path:
        """What to delete for a model; the whole repository folder in the layout of the hub's cache."""
        folder = checkpoint.folder
        if folder.parent.name == "snapshots":
            folder = folder.parent.parent
        if not folder.parent.resolve().is_relative_to(self.root.resolve()):
            raise InvalidRequestError(
                f"model {describe(checkpoint.name)} does not lie in the models folder and is not deleted",
                parameter="model",
                value=checkpoint.name,
            )
        return folder

    def _scan(self, folder: Path, prefix: str, depth: int) -> Iterator[Checkpoint]:
        for child in _subfolders(folder):
            name = prefix + child.name
            if depth == 1 and child.name.startswith(_HUB_CACHE_PREFIX):
                plain = child.name.removeprefix(_HUB_CACHE_PREFIX).replace("--", "/")
                snapshot = self._hub_cache_snapshot(plain)
                if snapshot is not None:
                    yield Checkpoint(plain, snapshot)
            elif not _NAME.fullmatch(name):
                if not child.name.startswith(".") and _is_checkpoint(child):
                    warn_once(_log, f"{child} is not served: its name must be of letters, digits, '.', '_' and '-'")
            elif _is_checkpoint(child):
                yield Checkpoint(plain_name(name), child)
            elif depth < _MAX_DEPTH:
                yield from self._scan(child, name + "/", depth + 1)
        for file in gguf_models_in(folder):
            name = prefix + plain_name(file.name)
            if _NAME.fullmatch(name) and not _is_checkpoint(folder / plain_name(file.name)):
                yield Checkpoint(name, file)

    def _hub_cache_snapshot(self, plain: str) -> Path | None:
        """The snapshot of the main branch in the layout of the hub's cache, else any that is whole enough."""
        folder = self.root / (_HUB_CACHE_PREFIX + plain.replace("/", "--"))
        try:
            main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        except OSError:
            main = None
        candidates = ([main] if main is not None else []) + _subfolders(folder / "snapshots")
        return next((candidate for candidate in candidates if _is_checkpoint(candidate)), None)


def _is_checkpoint(folder: Path) -> bool:
    if (folder / "config.json").is_file():
        return True
    return len(gguf_models_in(folder)) == 1 and all(child.name.startswith(".") for child in _subfolders(folder))


def _gguf_file(stem: Path) -> Path | None:
    """The first file of the GGUF model of that name in a folder where it is not alone."""
    return next((file for file in gguf_models_in(stem.parent) if plain_name(file.name) == stem.name), None)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []


def _link_or_copy(source: str, target: str) -> str:
    if source.endswith(_WEIGHTS):
        try:
            os.link(os.path.realpath(source), target)
        except OSError:  # another disk, or one without hard links
            return shutil.copy2(source, target)
        return target
    return shutil.copy2(source, target)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove owners' folders that hold nothing more."""
    while folder != root and folder.is_relative_to(root) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
