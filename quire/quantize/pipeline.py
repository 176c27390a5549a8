"""The steps of `quire quantize`: load, measure, write, load again, measure; each with its progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quire.config.engine_args import EngineArgs
from quire.config.types import EngineConfig, ModelConfig
from quire.engine.resolve import resolve_config
from quire.engine.text import load_text_side
from quire.errors import ConfigError
from quire.loader.configuration import is_gguf
from quire.loader.formats import read_weights
from quire.quantize.calibration import LoadedModel, Report, read_texts
from quire.quantize.checkpoint import write
from quire.quantize.gguf.write import write_gguf
from quire.quantize.integers import IntegerWork
from quire.quantize.options import QuantizeOptions
from quire.tokenizer import Tokenizer


@dataclass(frozen=True)
class Outcome:
    """Perplexity on the calibration text before and after, if there was one; bytes of the weights before and after."""

    before: float | None
    after: float | None
    bytes_before: int
    bytes_after: int


def quantize(options: QuantizeOptions, report: Report) -> Outcome:
    """Quantize `options.model` into a new folder or file. Raises QuireError before long work where it cannot be done."""
    options = options.settled()
    config = _resolve(options.model)
    if config.model.hf.quantization is not None:
        method = config.model.hf.quantization.method
        raise ConfigError(f"model must be a checkpoint in floats, but {options.model} is quantized by {method} already")
    if is_gguf(config.model.path):
        raise ConfigError(f"model must be a folder in Hugging Face's form or a hub id, but {options.model} is a GGUF file")
    tokenizer = load_text_side(config)
    assert tokenizer is not None
    texts = _texts(options, config.model, tokenizer)
    source = {name: tensor for name, tensor in read_weights(config.model.path) if isinstance(tensor, Tensor)}
    if options.is_gguf:
        assert options.type is not None
        before = LoadedModel(config.model, options.max_tokens).perplexity(texts, report) if texts else None
        written = write_gguf(Path(options.output), config.model, tokenizer, source, options.type, report)
    else:
        work = IntegerWork(options, config.model, source, report)
        before = work.loaded.perplexity(texts, report)
        written = _write_integers(work, texts)
        del work
    after = LoadedModel(_resolve(options.output).model, options.max_tokens).perplexity(texts, report)
    return Outcome(before, after, sum(tensor.nbytes for tensor in source.values()), written)


def _resolve(model: str) -> EngineConfig:
    return resolve_config(EngineArgs(model=model, device="cpu"), offline=True)


def _texts(options: QuantizeOptions, config: ModelConfig, tokenizer: Tokenizer) -> list[list[int]]:
    if options.calibration is None:
        return []
    limit = min(options.max_tokens, config.max_model_len)
    return read_texts(Path(options.calibration), tokenizer, limit, options.num_samples)


def _write_integers(work: IntegerWork, texts: list[list[int]]) -> int:
    """A folder in the layout of the options; the bytes of its weights."""
    tensors = work.quantize(texts)
    layout = work.layout
    settings = layout.settings(work.grid, work.floats, work.rounded_layers)
    write(Path(work.options.output), Path(work.config.path), tensors, settings, layout.further_files(settings))
    return sum(tensor.nbytes for tensor in tensors.values())
