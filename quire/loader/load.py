"""Builds a model and streams its weights in, counting: every parameter exactly once, or an error that names the rest."""

from __future__ import annotations

import time
import zlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from quire.config.types import LoadConfig, ModelConfig
from quire.errors import ModelLoadError
from quire.loader.formats import Weights, read_weights
from quire.log import get_logger
from quire.models import ModelRegistry

_logger = get_logger(__name__)
_MAX_NAMED = 8
_DUMMY_SCALE = 0.03

Part = tuple[str, Hashable]


def load_model(config: ModelConfig, load: LoadConfig, device: torch.device) -> nn.Module:
    """The model of `config` on `device` in `config.dtype`, ready to run.

    Raises UnsupportedModelError for an unknown architecture, ModelLoadError when weights and architecture differ.
    """
    start = time.perf_counter()
    model = build_model(config, device)
    if load.load_format == "dummy":
        fill_dummy(model, config.seed)
    else:
        load_weights(model, read_weights(config.path, load.load_format), config.hf.tie_word_embeddings)
    for module in model.modules():
        if hasattr(module, "after_load"):
            module.after_load()
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    seconds = time.perf_counter() - start
    _logger.info("loaded %s: %.2f GiB of weights in %.1f s", config.model, num_bytes / 2**30, seconds)
    return model


def build_model(config: ModelConfig, device: torch.device) -> nn.Module:
    """The model with empty parameters."""
    model_class = ModelRegistry.resolve(config.hf.architecture)
    with _default_dtype(getattr(torch, config.dtype)), torch.device(device):
        try:
            model = model_class(config.hf)
        except ValueError as error:
            raise ModelLoadError(f"{config.model}: {error}") from error
    return model.eval()


def load_weights(model: nn.Module, weights: Weights, tied: bool) -> None:
    """Give each tensor to the parameter it belongs to.

    Rotary tables are computed, not loaded, and a tied output head repeats the embedding: both are passed over.
    """
    parameters = dict(model.named_parameters())
    waiting = {(name, part) for name, parameter in parameters.items() for part in parameter.part_ids}
    unexpected: list[str] = []
    for name, tensor in weights:
        if "rotary_emb." in name or (tied and name == "lm_head.weight"):
            continue
        target, part_id = _target(name, model.packed_weights)
        if target not in parameters:
            unexpected.append(name)
            continue
        if (target, part_id) not in waiting:
            raise ModelLoadError(f"tensor {name} comes twice in the checkpoint")
        waiting.remove((target, part_id))
        parameter = parameters[target]
        try:
            parameter.weight_loader(parameter, tensor, part_id)
        except ValueError as error:
            raise ModelLoadError(f"tensor {name} has {error}") from error
    _complain(_checkpoint_names(waiting, model.packed_weights), sorted(unexpected))


def fill_dummy(model: nn.Module, seed: int = 0) -> None:
    """Random weights that depend on each parameter's name and `seed` alone; norms are 1."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("norm.weight"):
            parameter.fill_(1.0)
            continue
        generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()) + seed)
        parameter.uniform_(-_DUMMY_SCALE, _DUMMY_SCALE, generator=generator)


def _target(name: str, packed: dict[str, tuple[str, Hashable]]) -> Part:
    """(parameter, part) that a checkpoint's tensor goes to."""
    words = name.split(".")
    for i, word in enumerate(words):
        if word in packed:
            words[i], part_id = packed[word]
            return ".".join(words), part_id
    return name, None


def _checkpoint_names(parts: set[Part], packed: dict[str, tuple[str, Hashable]]) -> list[str]:
    """The names that a checkpoint has for parts of parameters."""
    spelled = {target: word for word, target in packed.items()}
    names = []
    for name, part_id in parts:
        words = [str(spelled.get((word, part_id), word)) for word in name.split(".")]
        names.append(".".join(words))
    return sorted(names)


def _complain(missing: list[str], unexpected: list[str]) -> None:
    if missing or unexpected:
        found = [f"missing: {_some(missing)}"] if missing else []
        found += [f"unexpected: {_some(unexpected)}"] if unexpected else []
        raise ModelLoadError(f"the checkpoint does not fit the architecture; {'; '.join(found)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
