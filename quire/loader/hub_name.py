"""What a name means on the Hugging Face hub, and which GGUF files of a repository it stands for.

`owner/name` is a repository, `owner/name:Q4_K_M` its GGUF file of that quantization, `owner/name/folder/file.gguf` one of its
files; all three may begin with `hf.co/`, as in llama.cpp and Ollama.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from quire.errors import HubError
from quire.loader.configuration import is_first_file, is_gguf, part_names

HUB_HOSTS = ("hf.co/", "huggingface.co/")
_QUANTIZATION = re.compile(r"(UD-)?(I?Q\d|TQ\d|BF16|F16|F32|FP16|FP32|MXFP\d)\w*", re.IGNORECASE)
"""Tags that are no revision: how llama.cpp and those who publish its files name types."""
_BY_DEFAULT = ("Q4_K_M", "Q8_0")
_ANY_TAG = "latest"
"""What Ollama puts in place of no tag."""
_WEIGHTS = (".safetensors", ".bin")
_MAX_NAMED = 20


class HubName(NamedTuple):
    """A model on the hub."""

    repo: str
    tag: str | None = None
    """A quantization of its GGUF files, or a revision."""
    file: str | None = None
    """A GGUF file of the repository."""

    @property
    def quantization(self) -> str | None:
        """The tag, if it is one."""
        return self.tag if self.tag is not None and _QUANTIZATION.fullmatch(self.tag) else None

    @property
    def revision(self) -> str | None:
        """The tag, if it is one."""
        return None if self.quantization else self.tag

    @property
    def is_gguf(self) -> bool:
        """Whether only GGUF files are meant."""
        return self.quantization is not None or self.file is not None


def parse_hub_name(name: str) -> HubName:
    """The parts of a name, which may be no hub id at all: the hub's client checks that."""
    for host in HUB_HOSTS:
        name = name.removeprefix(host)
    words = name.split("/", 2)
    if len(words) == 3 and is_gguf(name) and all(words):
        return HubName("/".join(words[:2]), file=words[2])
    repo, _, tag = name.partition(":")
    return HubName(repo, None if tag in ("", _ANY_TAG) else tag)


def gguf_files(names: Sequence[str], wanted: HubName) -> list[str]:
    """The files of a repository, of all its `names`, that make the GGUF model that is wanted, its first file first.

    Empty where the repository's own checkpoint is wanted: it has one in Hugging Face's form, and neither file nor quantization is
    named. Raises HubError for a file, a quantization or a part that is not there.
    """
    models = [name for name in sorted(names) if is_first_file(_base(name))]
    if wanted.file is not None:
        first = wanted.file if wanted.file in names else None
    elif wanted.quantization is not None:
        first = _of_quantization(models, wanted.quantization)
    elif not models or any(name.endswith(_WEIGHTS) for name in names):
        return []
    else:
        found = (_of_quantization(models, quantization) for quantization in _BY_DEFAULT)
        first = next((name for name in found if name is not None), models[0])
    if first is None:
        there = ", ".join(models[:_MAX_NAMED]) + (", ..." if len(models) > _MAX_NAMED else "")
        meant = wanted.file or f"GGUF file of quantization {wanted.quantization}"
        raise HubError(f"{wanted.repo} has no {meant}; it has {there or 'no GGUF files'}")
    folder = first.removesuffix(_base(first))
    parts = [folder + part for part in part_names(_base(first)) or [_base(first)]]
    missing = [part for part in parts if part not in names]
    if missing:
        raise HubError(f"{wanted.repo} lacks parts of {first}: {', '.join(missing)}")
    return parts


def _of_quantization(models: list[str], quantization: str) -> str | None:
    """The first of these files with the quantization in its name, between characters that may bound it."""
    pattern = re.compile(rf"(^|[-._/]){re.escape(quantization)}[-./]", re.IGNORECASE)
    return next((name for name in models if pattern.search(name)), None)


def _base(name: str) -> str:
    return name.rpartition("/")[2]
