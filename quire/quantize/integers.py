"""A checkpoint's linear layers in integers: which are rounded, on which grid, after which scaling; block by block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quire import ops
from quire.config.types import ModelConfig
from quire.errors import ConfigError, UnsupportedModelError
from quire.loader.naming import Names, Part
from quire.log import get_logger
from quire.quant import Quantizable
from quire.quantize import awq
from quire.quantize.calibration import Inputs, LoadedModel, Report, watching
from quire.quantize.grid import Grid, Rounded
from quire.quantize.layouts import LAYOUTS
from quire.quantize.options import QuantizeOptions
from quire.quantize.rounding import gptq, round_by_importance, round_to_nearest

_logger = get_logger(__name__)

_SMALLEST_GROUP = 32
_HESSIAN_BYTES = 4 * 2**30
"""Memory for what layers read: with more layers than fit, the text is read several times, each time by a model whose earlier
layers are rounded already."""


@dataclass(frozen=True)
class _Linear:
    """A linear layer's weight in the checkpoint, and where its rows go in the model."""

    layer: Quantizable
    parts: list[Part]
    is_transposed: bool
    """The checkpoint stores it as [inputs, outputs]."""


@dataclass(frozen=True)
class _Piece:
    """Rows of a checkpoint's tensor that are a part of a parameter."""

    name: str
    part: object
    rows: Tensor


class IntegerWork:
    """A loaded model and its checkpoint's tensors, `source`. Weights are taken as [outputs, inputs], however they are stored."""

    def __init__(self, options: QuantizeOptions, config: ModelConfig, source: dict[str, Tensor], report: Report) -> None:
        self.options, self.config, self.source, self._report = options, config, source, report
        self.layout = LAYOUTS[str(options.layout)]
        self.loaded = LoadedModel(config, options.max_tokens)
        self._names = Names(self.loaded.model)
        self._linears = self._in_model_order(dict(self._find_linears()))
        self._changed: dict[str, Tensor] = {}
        self.floats = ["lm_head"]
        """Linear layers that stay as they are."""
        self.grid = self._choose_grid()
        """One for all layers: readers of the layouts do not all look for more."""
        self._links = list(self._find_links()) if options.method == "awq" else []
        self.rounded: dict[str, Rounded] = {}
        """By the names of weights."""

    @property
    def rounded_layers(self) -> list[str]:
        """Names of the layers that are rounded, in the order of the model."""
        return [name.removesuffix(".weight") for name in self.rounded]

    def quantize(self, texts: list[list[int]]) -> dict[str, Tensor]:
        """All tensors of the new checkpoint."""
        for names in _passes(self._linears) if texts else [list(self._linears)]:
            inputs = self._watch([self._linears[name].layer for name in names], texts)
            factors = self._scale(names, inputs)
            step = self._report(str(self.options.method), len(names))
            for name in names:
                read = inputs.get(self._linears[name].layer)
                hessian = None if read is None else _scaled(read.hessian, factors.get(name))
                self._round(name, self._rows(name), hessian)
                self._changed.pop(name, None)
                step()
        kept = {name: tensor for name, tensor in self.scaled_tensors().items() if name not in self.rounded}
        for name, rounded in self.rounded.items():
            kept |= self.layout.tensors(name.removesuffix(".weight"), rounded)
        return kept

    def scale(self, texts: list[list[int]]) -> None:
        """AWQ's scaling alone, of all weights at once."""
        names = list(self._linears)
        self._scale(names, self._watch([self._linears[name].layer for name in names], texts))

    def scaled_tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors with what scaling changed in those that are not rounded yet, as they are stored."""
        found = dict(self.source)
        for name, tensor in self._changed.items():
            stored = tensor.T if self._names.is_transposed(name, tensor) else tensor
            found[name] = stored.to(self.source[name].dtype).contiguous()
        return found

    # -- what is rounded -------------------------------------------------------------------------------------------

    def _find_linears(self) -> Iterator[tuple[str, _Linear]]:
        """The weights to round, by their names in the checkpoint."""
        for name, tensor in self.source.items():
            if self._names.is_passed_over(name) or tensor.dim() != 2:
                continue
            parts = [part for part, _ in self._names.cut(name, tensor)]
            layer = self.loaded.model.get_submodule(parts[0][0].rpartition(".")[0])
            if not isinstance(layer, Quantizable) or layer.shard.is_embedding or layer.shard.is_exact:
                continue
            is_transposed = self._names.is_transposed(name, tensor)
            if is_transposed and not self.layout.takes_transposed:
                raise UnsupportedModelError(
                    f"layout {self.options.layout} has no place for the transposed weights of {self.config.hf.architecture}: "
                    "use layout gptq"
                )
            yield name, _Linear(layer, parts, is_transposed)

    def _in_model_order(self, linears: dict[str, _Linear]) -> dict[str, _Linear]:
        places = {layer: place for place, layer in enumerate(self.loaded.model.modules())}
        return dict(sorted(linears.items(), key=lambda item: places[item[1].layer]))

    def _shape(self, name: str) -> tuple[int, int]:
        """(outputs, inputs) of a weight."""
        first, second = self.source[name].shape
        return (second, first) if self._linears[name].is_transposed else (first, second)

    def _choose_grid(self) -> Grid:
        """With the largest groups up to those wanted that divide the inputs of all layers, but of those that 32 does not divide
        or that the layout does not hold: these stay floats.
        """
        options, size = self.options, int(self.options.group_size or 0)
        shapes = {name: self._shape(name) for name in self._linears}
        fitting = {name: inputs for name, (outputs, inputs) in shapes.items() if self.layout.fits(outputs, inputs)}
        if options.bits == 8:
            size = 0
        if size:
            fitting = {name: inputs for name, inputs in fitting.items() if inputs % _SMALLEST_GROUP == 0}
        if not fitting:
            raise ConfigError(f"model must have linear layers, {options.model} has none that can be quantized")
        while any(size and inputs % size for inputs in fitting.values()):
            size //= 2
        if size and size != options.group_size:
            _logger.info("groups of %d: %d does not divide the inputs of every layer", size, options.group_size)
        for name in [name for name in self._linears if name not in fitting]:
            del self._linears[name]
            self.floats.append(name.removesuffix(".weight"))
        dtype = self.source[next(iter(fitting))].dtype
        return self.layout.grid(int(options.bits or 4), size, bool(options.symmetric), dtype)

    # -- awq -------------------------------------------------------------------------------------------------------

    def _find_links(self) -> Iterator[tuple[awq.Link, list[str]]]:
        """Links whose readers are all rounded, with the names of the weights that read."""
        weights: dict[str, list[str]] = {}
        for name, linear in self._linears.items():
            for module in dict.fromkeys(part[0] for part in linear.parts):
                weights.setdefault(module.rpartition(".")[0], []).append(name)
        for link in awq.links_of(type(self.loaded.model).__name__, self.config.hf):
            readers = [name for reader in link.readers for name in weights.get(reader, [])]
            if all(reader in weights for reader in link.readers):
                yield link, readers

    def _scale(self, names: list[str], inputs: dict[Quantizable, Inputs]) -> dict[str, Tensor]:
        """AWQ's factors of the inputs of these weights; what they change is noted."""
        factors: dict[str, Tensor] = {}
        links = [(link, readers) for link, readers in self._links if readers[0] in names]
        step = self._report("awq scales", len(links)) if links else None
        for link, readers in links:
            read = inputs[self._linears[readers[0]].layer]
            weights = [self._rows(name) for name in readers]
            scales = awq.find_scales(weights, read.hessian, read.magnitudes, self.grid)
            scales = self._divide(link, scales)
            for name, weight in zip(readers, weights, strict=True):
                self._changed[name] = weight * scales
            factors |= dict.fromkeys(readers, scales)
            if step:
                step()
        return factors

    def _divide(self, link: awq.Link, scales: Tensor) -> Tensor:
        """Divide what a link's source gives; the factors that this leaves to multiply by."""
        source = self.loaded.model.get_submodule(link.source)
        if isinstance(source, Quantizable):
            for leaf in ("weight", "bias"):
                for piece in self._pieces_of(f"{link.source}.{leaf}", link.part):
                    self._changed[piece.name] = awq.divide_rows(self._rows(piece.name), scales, piece.rows)
            return scales
        (weight,) = self._pieces_of(f"{link.source}.weight", None)
        dtype = self.source[weight.name].dtype
        plus_one = bool(getattr(source, "plus_one", False))
        self._changed[weight.name], scales = awq.divide_norm(self.source[weight.name], scales, dtype, plus_one)
        for bias in self._pieces_of(f"{link.source}.bias", None):
            self._changed[bias.name] = self.source[bias.name].float() / scales
        return scales

    def _pieces_of(self, parameter: str, part: object) -> list[_Piece]:
        """The rows of the checkpoint's tensors that are this part of a parameter; of all parts if `part` is None."""
        return [piece for piece in self._pieces.get(parameter, []) if part is None or piece.part == part]

    @cached_property
    def _pieces(self) -> dict[str, list[_Piece]]:
        """By parameter."""
        found: dict[str, list[_Piece]] = {}
        for name, tensor in self.source.items():
            if self._names.is_passed_over(name):
                continue
            numbers = torch.arange(tensor.shape[1 if self._names.is_transposed(name, tensor) else 0])
            for (parameter, part), rows in self._names.cut_rows(name, numbers[:, None]):
                found.setdefault(parameter, []).append(_Piece(name, part, rows[:, 0]))
        return found

    # -- rounding --------------------------------------------------------------------------------------------------

    def _rows(self, name: str) -> Tensor:
        """A tensor as it is by now, float32; a weight as [outputs, inputs]."""
        if name in self._changed:
            return self._changed[name].float()
        tensor = self.source[name]
        return (tensor.T if self._names.is_transposed(name, tensor) else tensor).float()

    def _watch(self, layers: list[Quantizable], texts: list[list[int]]) -> dict[Quantizable, Inputs]:
        if self.options.method == "rtn":
            return {}
        step = self._report("calibration", len(texts))
        with watching(list(dict.fromkeys(layers))) as inputs:
            for ids in texts:
                self.loaded.forward(ids)
                step()
        return inputs

    def _round(self, name: str, weight: Tensor, hessian: Tensor | None) -> None:
        if hessian is None:
            values, steps = round_to_nearest(weight, self.grid)
        else:
            values, steps = (gptq if self.options.method == "gptq" else round_by_importance)(weight, hessian, self.grid)
        self.rounded[name] = rounded = Rounded(values.to(torch.int8), steps)
        if self.options.method == "gptq":
            self._replace(name, rounded.dequantize())

    def _replace(self, name: str, weight: Tensor) -> None:
        """Let the loaded model compute with a rounded weight [outputs, inputs] from now on."""
        layer = self._linears[name].layer
        for (_, part_id), piece in self._names.cut_rows(name, weight):
            shard = layer.shard
            first_row, rows = shard.place((shard.output_size, shard.input_size), piece, part_id)
            ops.set_rows(layer.weight, first_row, rows)  # type: ignore[arg-type]


def _scaled(hessian: Tensor, factors: Tensor | None) -> Tensor:
    """The mean of x x^T once inputs are divided by their factors."""
    return hessian if factors is None else hessian / torch.outer(factors, factors)


def _passes(linears: dict[str, _Linear]) -> Iterator[list[str]]:
    """Names in the order of the model: those of as many whole blocks at once as _HESSIAN_BYTES allow, at least of one."""
    names: list[str] = []
    total = 0
    for block in _blocks(linears):
        layers = {linears[name].layer for name in block}
        size = sum(4 * layer.shard.input_size**2 for layer in layers)
        if names and total + size > _HESSIAN_BYTES:
            yield names
            names, total = [], 0
        names, total = names + block, total + size
    if names:
        yield names


def _blocks(names: Iterable[str]) -> list[list[str]]:
    """Names that are alike up to the number of a block."""
    found: dict[str, list[str]] = {}
    for name in names:
        numbered = re.match(r".*?\.\d+\.", name)
        found.setdefault(numbered.group() if numbered else name, []).append(name)
    return list(found.values())
