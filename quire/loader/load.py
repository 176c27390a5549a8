"""Builds a model and streams its weights in, counting: every parameter exactly once, or an error that names the rest.

Nothing is held twice: a parameter gets its memory with its first rows, and a layer is finished (quantized, packed, its
staging memory freed) with the last row that it needs.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from quire.config.types import HFConfig, LoadConfig, ModelConfig
from quire.errors import ModelLoadError
from quire.layers import LayerNorm, RMSNorm
from quire.loader.formats import Weights, read_weights
from quire.loader.naming import Names, Part, shares_memory
from quire.log import get_logger
from quire.models import ModelRegistry
from quire.ops.weights import PackedWeight, WeightParts
from quire.quant import (
    CheckpointFormat,
    EncodedWeight,
    Loadable,
    Quantizable,
    make_checkpoint_format,
    make_scheme,
    row_pieces,
)

_logger = get_logger(__name__)
_MAX_NAMED = 8
_DUMMY_SCALE = 0.03


def load_model(config: ModelConfig, load: LoadConfig, device: torch.device) -> nn.Module:
    """The model of `config` on `device`, ready to run.

    Raises UnsupportedModelError for an unknown architecture, ModelLoadError when weights and architecture differ.
    """
    start = time.perf_counter()
    model = build_model(config, device)
    if load.load_format == "dummy":
        fill_dummy(model, device, config.seed)
    else:
        with read_weights(config.path, load.load_format) as weights:
            load_weights(model, weights, device, make_checkpoint_format(config))
    if hasattr(model, "after_load"):
        model.after_load()
    num_bytes, seconds = weight_bytes(model), time.perf_counter() - start
    _logger.info("loaded %s: %.2f GiB of weights in %.1f s", config.model, num_bytes / 2**30, seconds)
    return model


def build_model(config: ModelConfig, device: torch.device) -> nn.Module:
    """The model without its parameters: slots for them, and each layer's quantization method.

    Activations and small parameters (norms, biases) are in the model's type, on a CPU always in float32.
    """
    activations = torch.float32 if device.type == "cpu" else getattr(torch, config.dtype)
    scheme = make_scheme(config, device)
    with _default_dtype(activations), torch.device(device):
        try:
            model = _construct(config)
        except ValueError as error:
            raise ModelLoadError(f"{config.model}: {error}") from error
    for layer in model.modules():
        if isinstance(layer, Quantizable):
            layer.set_quant(scheme.method_for(layer.shard))
    return model.eval()


def _construct(config: ModelConfig) -> nn.Module:
    """The model's class, Quire's own or the one around a class of transformers, made with its configuration."""
    if config.model_impl == "transformers":
        from quire.models.transformers_backend.model import TransformersForCausalLM

        return TransformersForCausalLM(config)
    return ModelRegistry.resolve(config.hf.architecture)(_with_served_positions(config))


def _with_served_positions(config: ModelConfig) -> HFConfig:
    """The checkpoint's configuration; longrope chooses its stretches by the longest context that the engine serves."""
    scaling = config.hf.rope_scaling
    if scaling is None or scaling["rope_type"] != "longrope":
        return config.hf
    return replace(config.hf, rope_scaling=scaling | {"served_positions": config.max_model_len})


def load_weights(
    model: nn.Module, weights: Weights, device: torch.device, format: CheckpointFormat | None = None
) -> None:
    """Give each tensor to the parameter it belongs to; see `quire.loader.naming` for how a model says which.

    Rotary tables are computed, not loaded, and a tied output head repeats the embedding: both are passed over. The tensors of a
    checkpoint quantized in `format` that make up one weight may come in any order, so these weights are loaded after all others.
    """
    names, loading = Names(model), _Loading(model, device, weights.release)
    encoded: dict[str, dict[str, Tensor]] = {}
    unexpected: list[str] = []
    for name, tensor in weights:
        if isinstance(tensor, EncodedWeight):
            if not _load_weight(name, tensor, names, loading):
                unexpected.append(name)
            weights.taken(tensor)
            continue
        role = format.role_of(name, tensor) if format else None
        if role is not None:
            encoded.setdefault(role[0], {})[role[1]] = tensor
            continue
        if not _load_tensor(name, tensor, names, loading) and not (format and format.is_needless(name, tensor)):
            unexpected.append(name)
        weights.taken(tensor)
    for name, tensors in encoded.items():
        assert format is not None
        if not _load_encoded(name, tensors, format, names, loading):
            unexpected.append(name)
        for tensor in tensors.values():
            weights.taken(tensor)
    _complain(names.in_checkpoint(loading.waiting), sorted(unexpected))


def _load_tensor(name: str, tensor: Tensor, names: Names, loading: _Loading) -> bool:
    """Load one tensor of floats. False: the architecture has no place for it."""
    if names.is_passed_over(name):
        return True
    try:
        pieces = names.cut(name, tensor)
        if not loading.expects(name, [part for part, _ in pieces]):
            return False
        for part, piece in pieces:
            loading.take(part, piece, tensor)
    except ValueError as error:
        raise ModelLoadError(f"tensor {name} has {error}") from error
    loading.release(tensor)
    return True


def _load_encoded(
    name: str, tensors: dict[str, Tensor], format: CheckpointFormat, names: Names, loading: _Loading
) -> bool:
    """The same for a quantized weight, given by all its tensors."""
    if names.is_passed_over(name):
        return True
    try:
        weight = format.decode(name, tensors)
    except ValueError as error:
        raise ModelLoadError(f"quantized tensor {name} has {error}") from error
    if isinstance(weight, Tensor):
        return _load_tensor(name, weight, names, loading)
    return _load_weight(name, weight, names, loading)


def _load_weight(name: str, weight: EncodedWeight, names: Names, loading: _Loading) -> bool:
    """The same for a quantized weight that is whole."""
    if names.is_passed_over(name):
        return True
    try:
        numbers = torch.arange(weight.shape[0]).unsqueeze(1)
        pieces = names.cut_rows(name, numbers.unflatten(0, (weight.num_experts, -1)) if weight.num_experts else numbers)
        if not loading.expects(name, [part for part, _ in pieces]):
            return False
        for part, numbers in pieces:
            loading.take_encoded(part, numbers, weight)
    except ValueError as error:
        raise ModelLoadError(f"quantized tensor {name} has {error}") from error
    return True


def fill_dummy(model: nn.Module, device: torch.device, seed: int = 0) -> None:
    """Random weights that depend on each parameter's name and `seed` alone; norms are 1."""
    for layer_name, layer in _loadable_layers(model):
        is_norm = isinstance(layer, RMSNorm | LayerNorm)
        for slot_name, slot in layer.slots.items():
            slot.allocate(device)
            name = f"{layer_name}.{slot_name}"
            if is_norm and slot_name == "weight":
                slot.take(0, torch.ones(slot.shape))
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            for start, stop in row_pieces(slot.shape, 4):
                rows = torch.empty(stop - start, *slot.shape[1:], dtype=torch.float32)
                slot.take(start, rows.uniform_(-_DUMMY_SCALE, _DUMMY_SCALE, generator=generator))
        layer.after_load()


def weight_bytes(model: nn.Module) -> int:
    """Memory of all parameters and packed weights."""
    weights = [getattr(layer, "weight", None) for layer in model.modules()]
    packed = sum(weight.num_bytes for weight in weights if isinstance(weight, PackedWeight | WeightParts))
    return packed + sum(p.numel() * p.element_size() for p in model.parameters())


class _Loading:
    """The parts of a model that are still to come, and the layers that wait for them."""

    def __init__(self, model: nn.Module, device: torch.device, release: Callable[[Tensor], None]) -> None:
        """`release` hears of each part of a checkpoint's tensor that is no longer needed."""
        self._device, self.release = device, release
        self._layers: dict[str, tuple[Loadable, str]] = {}
        """Layer and slot of each parameter."""
        self._missing: dict[Loadable, int] = {}
        """Parts that a layer still lacks."""
        self._sources: dict[Loadable, list[Tensor]] = {}
        """Tensors of quantized weights that a layer reads when it is finished."""
        self.waiting: set[Part] = set()
        for layer_name, layer in _loadable_layers(model):
            self._missing[layer] = sum(len(slot.part_ids) for slot in layer.slots.values())
            for slot_name, slot in layer.slots.items():
                name = f"{layer_name}.{slot_name}"
                self._layers[name] = (layer, slot_name)
                self.waiting |= {(name, part_id) for part_id in slot.part_ids}
        self._all = frozenset(self.waiting)

    def expects(self, name: str, parts: list[Part]) -> bool:
        """Whether the model has these parts; ModelLoadError when one of them is there already."""
        if not self._all.issuperset(parts):
            return False
        if not self.waiting.issuperset(parts):
            raise ModelLoadError(f"tensor {name} comes twice in the checkpoint")
        return True

    def take(self, part: Part, piece: Tensor, source: Tensor) -> None:
        """Move a piece of the checkpoint's tensor `source` in. ValueError: wrong shape. (A copy has nothing to release.)"""
        name, part_id = part
        layer, slot_name = self._layers[name]
        slot = layer.slots[slot_name]
        first_row, rows = slot.place(piece, part_id)
        if not slot.is_allocated:
            slot.allocate(self._device)
        for start, stop in row_pieces(tuple(rows.shape), rows.element_size()):
            slot.take(first_row + start, rows[start:stop])
            if shares_memory(rows, source):
                self.release(rows[start:stop])
        self._count(part, layer)

    def take_encoded(self, part: Part, numbers: Tensor, weight: EncodedWeight) -> None:
        """The same for rows `numbers` [n, 1] of a quantized weight. ValueError: wrong shape."""
        name, part_id = part
        layer, slot_name = self._layers[name]
        slot = layer.slots[slot_name]
        if slot.shape[1:] != weight.shape[1:]:
            raise ValueError(f"shape {list(weight.shape)}, but the architecture needs {slot.shape[-1]} inputs")
        slot.take_encoded(*slot.place_numbers(numbers, part_id), weight, self._device)
        self._sources.setdefault(layer, []).extend(weight.tensors())
        self._count(part, layer)

    def _count(self, part: Part, layer: Loadable) -> None:
        self.waiting.remove(part)
        self._missing[layer] -= 1
        if self._missing[layer] == 0:
            layer.after_load()
            for tensor in self._sources.pop(layer, []):
                self.release(tensor)


def _loadable_layers(model: nn.Module) -> Iterator[tuple[str, Loadable]]:
    for name, layer in model.named_modules():
        if isinstance(layer, Loadable):
            yield name, layer


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
