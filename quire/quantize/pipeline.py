"""The steps of `quire quantize`: load, watch, round, write, load again; each with its progress."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from quire import ops
from quire.config.engine_args import EngineArgs
from quire.config.types import EngineConfig, LoadConfig, ModelConfig
from quire.engine.resolve import resolve_config
from quire.engine.text import load_text_side
from quire.errors import ConfigError, UnsupportedModelError
from quire.layers.fused import Transposed
from quire.loader import load_model
from quire.loader.configuration import is_gguf
from quire.loader.formats import read_weights
from quire.loader.naming import Names, Part
from quire.log import get_logger
from quire.quant import Quantizable
from quire.quantize import awq
from quire.quantize.calibration import Forward, Inputs, perplexity, read_texts, watching
from quire.quantize.checkpoint import Rounded, quantization_config, write
from quire.quantize.grid import Grid
from quire.quantize.rounding import gptq, round_by_importance, round_to_nearest

_logger = get_logger(__name__)

METHODS = ("rtn", "awq", "gptq")
Method = Literal["rtn", "awq", "gptq"]
_SMALLEST_GROUP = 32
_HESSIAN_BYTES = 4 * 2**30
"""Memory for what layers read: with more layers than fit, the text is read several times, each time by a model whose earlier
layers are rounded already."""

Report = Callable[[str, int], Callable[[], None]]
"""(what begins, its number of steps) -> a function to call after each step."""


@dataclass(frozen=True)
class QuantizeOptions:
    """What to do."""

    model: str
    output: str
    method: Method = "gptq"
    bits: int = 4
    group_size: int = 128
    """Inputs that share a scale; 0: all of an output's."""
    calibration: str | None = None
    num_samples: int = 128
    max_tokens: int = 512
    """Of one sample."""

    def check(self) -> None:
        """Raises ConfigError for what makes no sense."""
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.bits not in (4, 8):
            raise ConfigError(f"bits must be 4 or 8, got {self.bits}")
        if self.group_size not in (0, 32, 64, 128):
            raise ConfigError(f"group_size must be 32, 64, 128, or 0 for whole rows, got {self.group_size}")
        if self.calibration is None and self.method != "rtn":
            raise ConfigError(f"give calibration, a file of text: method {self.method} needs to see what the layers read")
        for name in ("num_samples", "max_tokens"):
            if getattr(self, name) < 1 + (name == "max_tokens"):
                raise ConfigError(f"{name} must be at least {1 + (name == 'max_tokens')}, got {getattr(self, name)}")
        if Path(self.output).exists() and any(Path(self.output).iterdir()):
            raise ConfigError(f"output must be a folder that is not there or empty, got {self.output!r}")


@dataclass(frozen=True)
class Outcome:
    """Perplexity on the calibration text before and after, if there was one; bytes of the weights before and after."""

    before: float | None
    after: float | None
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _Linear:
    """A linear layer's weight in the checkpoint, and where its rows go in the model."""

    layer: Quantizable
    parts: list[Part]


def quantize(options: QuantizeOptions, report: Report) -> Outcome:
    """Quantize `options.model` into a new folder. Raises QuireError before long work where it cannot be done."""
    options.check()
    config = _resolve(options.model)
    if config.model.hf.quantization is not None:
        method = config.model.hf.quantization.method
        raise ConfigError(f"model must be a checkpoint in floats, but {options.model} is quantized by {method} already")
    if is_gguf(config.model.path):
        raise ConfigError(f"model must be a folder in Hugging Face's form or a hub id, but {options.model} is a GGUF file")
    work = _Work(options, config.model, report)
    tokenizer = load_text_side(config)
    texts = []
    if options.calibration is not None:
        assert tokenizer is not None
        limit = min(options.max_tokens, config.model.max_model_len)
        texts = read_texts(Path(options.calibration), tokenizer, limit, options.num_samples)
    before = work.perplexity(texts)
    tensors = work.quantize(texts)
    settings = quantization_config(work.grid, work.floats)
    write(Path(options.output), Path(config.model.path), tensors, settings)
    bytes_before = sum(tensor.nbytes for tensor in work.source.values())
    del work
    again = _resolve(options.output)
    after = _Work(options, again.model, report).perplexity(texts)
    return Outcome(before, after, bytes_before, sum(tensor.nbytes for tensor in tensors.values()))


def _resolve(model: str) -> EngineConfig:
    return resolve_config(EngineArgs(model=model, device="cpu"), offline=True)


class _Work:
    """A loaded model and its checkpoint's tensors."""

    def __init__(self, options: QuantizeOptions, config: ModelConfig, report: Report) -> None:
        self._options, self._config, self._report = options, config, report
        self._model = load_model(config, LoadConfig(), torch.device("cpu"))
        self._names = Names(self._model)
        self._forward = Forward(self._model, config, options.max_tokens)
        self.source = {name: tensor for name, tensor in read_weights(config.path) if isinstance(tensor, Tensor)}
        self.grid = Grid(options.bits, options.group_size, True)
        """One for all layers: readers of the layout do not all look for more."""
        self.rounded: dict[str, Rounded] = {}
        self.floats = ["lm_head"]
        """Linear layers that stay as they are."""

    def perplexity(self, texts: list[list[int]]) -> float | None:
        """On these texts; None if there are none."""
        if not texts:
            return None
        return perplexity(self._forward, texts, self._report("perplexity", len(texts)))

    def quantize(self, texts: list[list[int]]) -> dict[str, Tensor]:
        """All tensors of the new checkpoint."""
        linears = self._in_model_order(dict(self._linears()))
        self.grid = self._choose_grid(list(linears))
        for name in [name for name in linears if self.grid.group_size and self.source[name].shape[1] % self.grid.group_size]:
            del linears[name]
            self.floats.append(name.removesuffix(".weight"))
        changed: dict[str, Tensor] = {}
        for names in _passes(linears) if texts else [list(linears)]:
            inputs = self._watch([linears[name].layer for name in names], texts)
            factors = self._scale(names, linears, inputs, changed) if self._options.method == "awq" else {}
            step = self._report(self._options.method, len(names))
            for name in names:
                weight = changed.get(name, self.source[name]).float()
                read = inputs.get(linears[name].layer)
                self._round(name, weight, linears[name], None if read is None else _scaled(read.hessian, factors.get(name)))
                changed.pop(name, None)
                step()
        kept = {name: tensor for name, tensor in self.source.items() if name not in self.rounded}
        kept |= {name: tensor.to(self.source[name].dtype) for name, tensor in changed.items() if name in kept}
        for name, rounded in self.rounded.items():
            kept |= rounded.tensors(name.removesuffix(".weight"))
        return kept

    def _linears(self) -> Iterator[tuple[str, _Linear]]:
        """The weights to round, by their names in the checkpoint."""
        if any(isinstance(cut, Transposed) for cut in getattr(self._model, "fused_weights", {}).values()):
            name = self._config.hf.architecture
            raise UnsupportedModelError(f"{name} cannot be quantized yet: its checkpoints hold transposed weights")
        for name, tensor in self.source.items():
            if self._names.is_passed_over(name) or tensor.dim() != 2:
                continue
            parts = [part for part, _ in self._names.cut(name, tensor)]
            layer = self._model.get_submodule(parts[0][0].rpartition(".")[0])
            if not isinstance(layer, Quantizable) or layer.shard.is_embedding or layer.shard.is_exact:
                continue
            yield name, _Linear(layer, parts)

    def _in_model_order(self, linears: dict[str, _Linear]) -> dict[str, _Linear]:
        places = {layer: place for place, layer in enumerate(self._model.modules())}
        return dict(sorted(linears.items(), key=lambda item: places[item[1].layer]))

    def _choose_grid(self, names: list[str]) -> Grid:
        """The largest groups up to those wanted that divide the inputs of all layers, but of those that 32 does not divide."""
        options, size = self._options, self._options.group_size
        if not names:
            raise ConfigError(f"model must have linear layers, {options.model} has none that can be quantized")
        dtype = self.source[names[0]].dtype
        if options.bits == 8 or size == 0:
            return Grid(options.bits, 0, True, dtype)
        inputs = [self.source[name].shape[1] for name in names]
        while any(count % _SMALLEST_GROUP == 0 and count % size for count in inputs):
            size //= 2
        if size != options.group_size:
            _logger.info("groups of %d: %d does not divide the inputs of every layer", size, options.group_size)
        return Grid(options.bits, size, options.method != "awq", dtype)

    def _watch(self, layers: list[Quantizable], texts: list[list[int]]) -> dict[Quantizable, Inputs]:
        if self._options.method == "rtn":
            return {}
        step = self._report("calibration", len(texts))
        with watching(list(dict.fromkeys(layers))) as inputs:
            for ids in texts:
                self._forward(ids)
                step()
        return inputs

    def _scale(
        self, names: list[str], linears: dict[str, _Linear], inputs: dict[Quantizable, Inputs], changed: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """AWQ's factors of the inputs of these weights; `changed` gets the tensors that they change."""
        factors: dict[str, Tensor] = {}
        hf = self._config.hf
        pairs = [pair for pair in awq.pairs_of(hf.architecture, hf.num_hidden_layers) if pair.readers[0] in names]
        step = self._report("awq scales", len(pairs))

        def tensor(name: str) -> Tensor:
            return changed.get(name, self.source[name]).float()

        for pair in pairs:
            read = inputs[linears[pair.readers[0]].layer]

            readers = [tensor(name) for name in pair.readers]
            scales = awq.find_scales(readers, read.hessian, read.magnitudes, self.grid)
            scales, moved = awq.rescale(pair, scales, tensor, self.source[pair.source].dtype)
            changed |= moved
            bias = pair.source.removesuffix("weight") + "bias"
            if bias in self.source:
                changed[bias] = tensor(bias) / scales
            factors |= dict.fromkeys(pair.readers, scales)
            step()
        return factors

    def _round(self, name: str, weight: Tensor, linear: _Linear, hessian: Tensor | None) -> None:
        if hessian is None:
            values, steps = round_to_nearest(weight, self.grid)
        else:
            values, steps = (gptq if self._options.method == "gptq" else round_by_importance)(weight, hessian, self.grid)
        self.rounded[name] = rounded = Rounded(values.to(torch.int8), steps)
        if self._options.method == "gptq":
            self._replace(name, linear, rounded.dequantize())

    def _replace(self, name: str, linear: _Linear, weight: Tensor) -> None:
        """Let the loaded model compute with a rounded weight from now on."""
        for (_, part_id), piece in self._names.cut(name, weight):
            shard = linear.layer.shard
            first_row, rows = shard.place((shard.output_size, shard.input_size), piece, part_id)
            ops.set_rows(linear.layer.weight, first_row, rows)  # type: ignore[arg-type]


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
