"""Finds a model's files: a local folder, a built-in model, or a download from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from quire import envs
from quire.errors import HubError, ModelLoadError

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
    """The local folder of `model`: a folder, a built-in name, or a hub id ("owner/name") at `revision`.

    Downloads only configuration, tokenizer and weights (safetensors where the repository has them).
    Raises ModelLoadError for a path that is not there, HubError when the hub cannot help; both say what to do.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    if model in BUILTIN_MODELS:
        return _builtin(model)
    if folder.exists():
        raise ModelLoadError(f"model must be a folder or a hub id, but {model} is a file")
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model.strip():
        raise ModelLoadError(f"model must be a folder or a hub id, but there is no folder {model!r}")
    return _download(model, revision, download_dir, token or envs.hf_token())


def _builtin(name: str) -> str:
    folder = _BUILTIN / name
    if not (folder / "config.json").exists():
        raise ModelLoadError(
            f"the built-in model {name} is not part of this installation; install Quire again"
        )
    return str(folder)


def _download(model: str, revision: str | None, download_dir: str | None, token: str | None) -> str:
    """The snapshot's folder, downloaded or from the hub's cache."""
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{model}" + (f" at revision {revision}" if revision else "")
    try:
        patterns = _CONFIG_FILES + _weight_patterns(model, revision, token)
        return str(
            huggingface_hub.snapshot_download(
                model,
                revision=revision,
                cache_dir=download_dir,
                token=token,
                allow_patterns=patterns,
                ignore_patterns=_UNWANTED,
            )
        )
    except errors.GatedRepoError as error:
        raise HubError(
            f"{where} is gated: accept its licence on the hub and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no model {model} (or it is private: set HF_TOKEN to a token that may read it); "
            "a local folder must exist to be used"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{model} has no revision {revision}") from error
    except errors.HFValidationError as error:
        raise HubError(f"model must be a folder or a hub id, got {model!r}: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(
            f"{where} is not in the local cache and the hub is out of reach; {_OFFLINE_ADVICE}"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise HubError(f"{where} could not be downloaded ({error}); {_OFFLINE_ADVICE}") from error


def _weight_patterns(model: str, revision: str | None, token: str | None) -> list[str]:
    """safetensors where the repository has them, else .bin; both when the hub cannot be asked (only the cache then)."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        names = huggingface_hub.HfApi(token=token).list_repo_files(model, revision=revision)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError):
        return _SAFETENSORS + _PICKLED
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("httpx", "requests"):  # no network: the cache may do
            raise
        return _SAFETENSORS + _PICKLED
    return _SAFETENSORS if any(name.endswith(".safetensors") for name in names) else _PICKLED
