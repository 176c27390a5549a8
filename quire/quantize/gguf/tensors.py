"""A checkpoint's tensors as a GGUF file has them: the inverse of `quire.loader.gguf.tensors`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.config.types import HFConfig
from quire.errors import UnsupportedModelError
from quire.loader.gguf.architectures import ARCHITECTURES, FALCON_TWO_NORMS, Architecture
from quire.models import ModelRegistry
from quire.quantize.gguf.file import Planned
from quire.quantize.gguf.mixtures import Mixture, Place, type_of


@dataclass(frozen=True)
class _Found:
    """Where a checkpoint's tensor goes."""

    module: str
    """llama.cpp's name of the module, without its layer."""
    layer: int | None
    leaf: str
    head: int = 0

    @property
    def name(self) -> str:
        outer = "" if self.layer is None else f"blk.{self.layer}."
        return f"{outer}{self.module}.{self.leaf}"


class Conversion:
    """The tensors of a checkpoint, `source`, by their names in the file."""

    def __init__(self, config: HFConfig, architecture: str, source: dict[str, Tensor]) -> None:
        self._config, self._name, self._source = config, architecture, source
        self._rules = ARCHITECTURES[architecture]
        self._places = _Places(self._rules, source)
        self._rename = getattr(ModelRegistry.resolve(config.architecture), "rename", lambda name: name)
        found: dict[str, list[tuple[_Found, str]]] = {}
        for name in source:
            place = self._place(name)
            if place is not None:
                found.setdefault(place.name, []).append((place, name))
        self._found = dict(sorted(found.items(), key=lambda item: item[1][0][0].layer or 0))

    def _place(self, name: str) -> _Found | None:
        """None: the file does not need it. Raises UnsupportedModelError: it has no place for it."""
        renamed = self._rename(name)
        if renamed is None or "rotary_emb." in renamed:
            return None
        if renamed.startswith("lm_head.") and self._config.tie_word_embeddings:
            return None
        found = self._places.find(renamed)
        if found is None:
            raise UnsupportedModelError(
                f"format gguf has no place for tensor {name} in architecture {self._name}; use format safetensors"
            )
        return found

    def plan(self, mixture: Mixture) -> list[Planned]:
        """The tensors of the file, each in the type that the mixture gives it."""
        config = self._config
        planned = []
        for name, parts in self._found.items():
            place = parts[0][0]
            where = Place(
                place.module,
                place.layer or 0,
                config.num_hidden_layers,
                self._name,
                config.num_attention_heads // config.num_key_value_heads,
                place.module == "output" or (place.module == "token_embd" and config.tie_word_embeddings),
            )
            shape = self._shape(parts)
            planned.append(Planned(name, shape, type_of(mixture, where, shape)))
        return planned

    def _shape(self, parts: list[tuple[_Found, str]]) -> tuple[int, ...]:
        shape = tuple(self._source[parts[0][1]].shape)
        module = parts[0][0].module
        if module in self._rules.head_norms:
            return (len(parts), *shape)
        return shape[::-1] if module in self._rules.transposed else shape

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, parts in self._found.items():
            yield name, self._make(parts)

    def __len__(self) -> int:
        return len(self._found)

    def _make(self, parts: list[tuple[_Found, str]]) -> Tensor:
        place, rules = parts[0][0], self._rules
        if place.module in rules.head_norms:
            ordered = sorted(parts, key=lambda part: part[0].head)
            return torch.stack([self._source[name] for _, name in ordered])
        tensor = self._source[parts[0][1]]
        if place.module in rules.transposed and tensor.dim() == 2:
            tensor = tensor.T
        if rules.norms_count_from_one and place.module.endswith("norm"):
            tensor = tensor.float() + 1
        order = rules.row_orders.get(place.module) if place.layer is not None else None
        if order is None:
            return tensor
        config = self._config
        rows = order(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        if len(rows) != len(tensor):
            raise UnsupportedModelError(f"tensor {parts[0][1]} must have {len(rows)} rows, got {len(tensor)}")
        return tensor[torch.from_numpy(np.argsort(rows))]


class _Places:
    """Hugging Face's names of an architecture's modules, as llama.cpp's."""

    def __init__(self, rules: Architecture, source: dict[str, Tensor]) -> None:
        has_two_norms = rules.model_type == "falcon" and any(".ln_attn." in name for name in source)
        layer_names = rules.layer_names | (FALCON_TWO_NORMS if has_two_norms else {})
        self._rules = rules
        self._outside = {name: module for module, name in rules.names.items()}
        self._inside = {name: module for module, name in layer_names.items()}

    def find(self, name: str) -> _Found | None:
        path, _, leaf = name.rpartition(".")
        if path in self._outside:
            return _Found(self._outside[path], None, leaf)
        prefix = f"{self._rules.layer}."
        number, _, inner = path.removeprefix(prefix).partition(".")
        if not path.startswith(prefix) or not number.isdecimal():
            return None
        stem, _, head = inner.partition(".norms.")
        module = self._inside.get(stem)
        if module is None or (head and module not in self._rules.head_norms):
            return None
        return _Found(module, int(number), leaf, int(head or 0))
