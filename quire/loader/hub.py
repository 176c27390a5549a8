"""Finds a model's files: a local folder, a built-in model, or a download from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quire import envs
from quire.errors import HubError, ModelLoadError
from quire.loader.configuration import is_gguf

BUILTIN_MODELS = ("folio", "folio-draft")
"""Names of the small models inside the package."""

_BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
"""Beside this file, also in an editable install (where the package has a second folder, without data)."""

_CONFIG_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "*.tiktoken"]
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
) -> str:
    """The local folder of `model`: a folder, a built-in name, or a hub id ("owner/name") at `revision`. A GGUF file is itself.

    Downloads only configuration, tokenizer and weights (safetensors where the repository has them).
    Raises ModelLoadError for a path that is not there, HubError when the hub cannot help; both say what to do.
    """
    folder = _local_folder("model", model)
    if folder is not None:
        return folder
    token = token or envs.hf_token()
    with hub_errors("model", model, revision):
        patterns = _CONFIG_FILES + _weight_patterns(model, revision, token)
        return _download(model, revision, download_dir, token, patterns)


def resolve_tokenizer(tokenizer: str, revision: str | None = None, download_dir: str | None = None) -> str:
    """The local folder of `tokenizer`, found as in `resolve_model` but without weights; raises the same."""
    folder = _local_folder("tokenizer", tokenizer)
    if folder is not None:
        return folder
    with hub_errors("tokenizer", tokenizer, revision):
        return _download(tokenizer, revision, download_dir, envs.hf_token(), _CONFIG_FILES)


def _local_folder(what: str, name: str) -> str | None:
    """The folder of that name or of the built-in model; None for what can only be a hub id."""
    folder = Path(name).expanduser()
    if name.strip() and (folder.is_dir() or (folder.is_file() and is_gguf(folder))):
        return str(folder)
    if name in BUILTIN_MODELS:
        return _builtin(name)
    if name.strip() and folder.exists():
        raise ModelLoadError(f"{what} must be a folder, a .gguf file or a hub id, but {name} is another file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ModelLoadError(f"{what} must be a folder, a .gguf file or a hub id, but there is no {name!r}")
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


def _weight_patterns(model: str, revision: str | None, token: str | None) -> list[str]:
    """safetensors where the repository has them, else .bin; both when the hub cannot be asked (only the cache then)."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi(token=token).model_info(model, revision=revision)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except Exception as error:
        if not _is_network_error(error):
            raise
        return _SAFETENSORS + _PICKLED
    return _patterns_of([file.rfilename for file in info.siblings or ()])


def _patterns_of(names: Sequence[str]) -> list[str]:
    return _SAFETENSORS if any(name.endswith(".safetensors") for name in names) else _PICKLED


def wanted_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files those that make a checkpoint: configuration, tokenizer, weights of one format."""
    from huggingface_hub.utils import filter_repo_objects

    patterns = _CONFIG_FILES + _patterns_of(names)
    return list(filter_repo_objects(names, allow_patterns=patterns, ignore_patterns=_UNWANTED))
