"""A checkpoint in Hugging Face's form as one GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from quire.config.hf import config_of
from quire.config.types import ModelConfig
from quire.loader.configuration import read_checkpoint_fields
from quire.log import get_logger
from quire.quantize.calibration import Report
from quire.quantize.gguf.file import GgufFile, Planned
from quire.quantize.gguf.metadata import (
    architecture_for,
    check_the_same,
    metadata_of,
    rope_tensors,
    without_window,
)
from quire.quantize.gguf.mixtures import ALIASES, INPUTS_OF, MIXTURES
from quire.quantize.gguf.tensors import Conversion
from quire.quantize.gguf.tokenizer import tokenizer_values
from quire.tokenizer import Tokenizer

_logger = get_logger(__name__)


def write_gguf(
    target: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    source: dict[str, Tensor],
    type_name: str,
    report: Report,
) -> int:
    """Write `source`, the tensors of the checkpoint of `config`, in the mixture of that name; the bytes of its weights.

    Raises UnsupportedModelError or ConfigError before any weight is rounded where the format has no words for the model.
    """
    mixture = MIXTURES[ALIASES.get(type_name, type_name)]
    architecture = architecture_for(config.hf)
    said = without_window(config.hf, architecture)
    conversion, further = Conversion(said, architecture, source), rope_tensors(said)
    values = metadata_of(said, architecture, Path(config.model).name, mixture.number)
    values |= tokenizer_values(tokenizer, Path(config.path), said.vocab_size, said.eos_token_ids)
    planned = conversion.plan(mixture)
    _tell_others(planned, mixture.base)
    planned += [Planned(name, tuple(tensor.shape), "F32") for name, tensor in further.items()]
    unfinished = target.with_name(f"{target.stem}.part.gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = GgufFile(unfinished, values, planned)
        file.fill(further.items())
        check_the_same(said, config_of(read_checkpoint_fields(unfinished), unfinished), architecture)
        file.fill(_reported(conversion, report(f"gguf {type_name}", len(conversion))))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return sum(tensor.num_bytes for tensor in planned)


def _reported(tensors: Conversion, step: Callable[[], None]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        step()


def _tell_others(planned: list[Planned], base: str) -> None:
    """Say which matrices got a type for the shape of their rows."""
    size = INPUTS_OF[base]
    others = [tensor for tensor in planned if len(tensor.shape) > 1 and tensor.type != "F32" and tensor.shape[-1] % size]
    for kind in sorted({tensor.type for tensor in others}):
        count = sum(tensor.type == kind for tensor in others)
        _logger.warning("%d matrices have rows that are no multiple of %d, %s's block: they become %s", count, size, base, kind)
