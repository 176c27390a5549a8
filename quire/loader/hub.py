"""Finds a model's files: a local folder, a built-in model, or a download from the Hugging Face hub."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quire import envs
from quire.errors import HubError, ModelLoadError
from quire.loader.configuration import is_gguf
from quire.loader.hub_name import HubName, gguf_files, parse_hub_name

BUILTIN_MODELS = ("folio", "folio-draft")
"""Names of the small models inside the package."""

_BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
"""Beside this file, also in an editable install (where the package has a second folder, without data)."""

_CONFIG_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "*.tiktoken"]
_CODE = ["*.py"]
_SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
_PICKLED = ["*.bin", "*.bin.index.json"]
_UNWANTED = ["original/*", "consolidated*", "onnx/*", "*training_args.bin", "optimizer*", "scheduler*"]
_OFFLINE_ADVICE = (
    "give a local folder, or download the model where there is a network and set HF_HUB_OFFLINE=1 here"
)


def resolve_model(
    model: str,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
    with_code: bool = False,
) -> str:
    """The local folder of `model`: a folder, a built-in name, or a hub id ("owner/name") at `revision`. A GGUF file is itself.

    Downloads only configuration, tokenizer and weights (safetensors where the repository has them), and Python files if
    `with_code`. Of a repository of GGUF files, or for a name as in `quire.loader.hub_name`, it is one file, with its other parts
    beside it.
    Raises ModelLoadError for a path that is not there, HubError when the hub cannot help; both say what to do.
    """
    folder = _local_folder("model", model)
    if folder is not None:
        return folder
    token, wanted = token or envs.hf_token(), parse_hub_name(model)
    repo = wanted.repo if wanted.is_gguf or wanted.tag is None else model  # a revision is no part of a model's name here
    with hub_errors("model", repo, revision):
        names = _file_names(repo, revision, token)
        known = _cached_names(repo, revision, download_dir) if names is None else names
        files = gguf_files(known, wanted) if known or names is not None else []
        if files:
            patterns = [glob.escape(name) for name in files]
            return str(Path(_download(repo, revision, download_dir, token, patterns)) / files[0])
        weights = _SAFETENSORS + _PICKLED if names is None else _patterns_of(names)
        patterns = _CONFIG_FILES + (_CODE if with_code else []) + weights
        return _download(repo, revision, download_dir, token, patterns)


def resolve_tokenizer(
    tokenizer: str, revision: str | None = None, download_dir: str | None = None, token: str | None = None
) -> str:
    """The local folder of `tokenizer`, found as in `resolve_model` but without weights; raises the same."""
    folder = _local_folder("tokenizer", tokenizer)
    if folder is not None:
        return folder
    with hub_errors("tokenizer", tokenizer, revision):
        return _download(tokenizer, revision, download_dir, token or envs.hf_token(), _CONFIG_FILES)


def _local_folder(what: str, name: str) -> str | None:
    """The folder of that name or of the built-in model; None for what can only be a hub id."""
    folder = Path(name).expanduser()
    if name.strip() and (folder.is_dir() or (folder.is_file() and is_gguf(folder))):
        return str(folder)
    if name in BUILTIN_MODELS:
        return _builtin(name)
    if name.strip() and folder.exists():
        raise ModelLoadError(f"{what} must be a folder, a .gguf file or a hub id, but {name} is a file of another kind")
    if name.startswith((".", "/", "~")) or parse_hub_name(name).repo.count("/") > 1 or not name.strip():
        raise ModelLoadError(f"{what} must be a folder, a .gguf file or a hub id, but there is no folder or file {name!r}")
    return None


def _builtin(name: str) -> str:
    folder = _BUILTIN / name
    if not (folder / "config.json").exists():
        raise ModelLoadError(
            f"the built-in model {name} is not part of this installation; install Quire again"
        )
    return str(folder)


def _download(
    name: str, revision: str | None, download_dir: str | None, token: str | None, patterns: list[str]
) -> str:
    """The snapshot's folder, downloaded or from the hub's cache."""
    import huggingface_hub

    cache_dir = None if download_dir is None else Path(download_dir).expanduser()
    return huggingface_hub.snapshot_download(
        name,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        allow_patterns=patterns,
        ignore_patterns=_UNWANTED,
    )


@contextmanager
def hub_errors(what: str, name: str, revision: str | None) -> Iterator[None]:
    """Turns what the hub's client raises into HubError, with what the user can do about it."""
    from huggingface_hub import errors

    where = f"{what} {name}" + (f" at revision {revision}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{where} is gated: accept its licence on the hub and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no model {name} (or it is private: set HF_TOKEN to a token that may read it); "
            "a local folder must exist to be used"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name} has no revision {revision}") from error
    except errors.HFValidationError as error:
        reason = _first_line(error)
        raise HubError(f"{what} must be a folder or a hub id, got {name!r}: {reason}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(
            f"{where} is not in the local cache and the hub is out of reach; {_OFFLINE_ADVICE}"
        ) from error
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise HubError(
            f"{where} could not be downloaded ({_first_line(error)}); {_OFFLINE_ADVICE}"
        ) from error


def _is_network_error(error: Exception) -> bool:
    """Whether the connection, the hub or the disk failed. The hub's client has changed its HTTP package before."""
    from huggingface_hub import errors

    package = type(error).__module__.split(".")[0]
    return isinstance(error, errors.HfHubHTTPError | OSError) or package.startswith(("httpx", "requests"))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _file_names(model: str, revision: str | None, token: str | None) -> list[str] | None:
    """All files of a repository; None when the hub cannot be asked (only the cache then)."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi(token=token).model_info(model, revision=revision)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except Exception as error:
        if not _is_network_error(error):
            raise
        return None
    return [file.rfilename for file in info.siblings or ()]


def _cached_names(model: str, revision: str | None, download_dir: str | None) -> list[str]:
    """The files of a repository that the hub's client has kept; it vouches for whole snapshots only, and one file is none."""
    import huggingface_hub

    cache_dir = None if download_dir is None else Path(download_dir).expanduser()
    try:
        repos = huggingface_hub.scan_cache_dir(cache_dir).repos
    except huggingface_hub.CacheNotFound:
        return []
    revisions = [found for repo in repos if (repo.repo_type, repo.repo_id) == ("model", model) for found in repo.revisions]
    for found in revisions:
        if (revision or "main") in (*found.refs, found.commit_hash):
            return [file.file_path.relative_to(found.snapshot_path).as_posix() for file in found.files]
    return []


def _patterns_of(names: Sequence[str]) -> list[str]:
    return _SAFETENSORS if any(name.endswith(".safetensors") for name in names) else _PICKLED


def wanted_files(names: Sequence[str], wanted: HubName) -> list[str]:
    """Of a repository's files those that make a checkpoint: a GGUF model's; or configuration, tokenizer, weights of one format.

    Raises HubError where they are not there.
    """
    from huggingface_hub.utils import filter_repo_objects

    files = gguf_files(names, wanted)
    if files:
        return files
    patterns = _CONFIG_FILES + _patterns_of(names)
    return list(filter_repo_objects(names, allow_patterns=patterns, ignore_patterns=_UNWANTED))
