"""What a checkpoint says of its quantization: `quantization_config` in config.json, or the file that older tools write for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.config.fields import Fields, read_json
from quire.errors import ConfigError, UnsupportedModelError, describe

CHECKPOINT_FORMATS: dict[str, str] = {
    "gptq": "quire.quant.gptq:GptqFormat",
    "awq": "quire.quant.awq:AwqFormat",
    "compressed-tensors": "quire.quant.compressed_tensors:CompressedTensorsFormat",
    "fp8": "quire.quant.float8:Float8Format",
    "bitsandbytes": "quire.quant.bitsandbytes:BitsAndBytesFormat",
    "squeezellm": "quire.quant.squeezellm:SqueezeLlmFormat",
    "gguf": "quire.quant.checkpoint:CheckpointFormat",
}
"""By `quant_method`: the class in `quire.quant` that reads such checkpoints, one file each. GGUF's reader decodes by itself."""

_ALIASES = {"gptq_marlin": "gptq", "awq_marlin": "awq"}
"""vLLM's names for kernels of its own over the same files."""

QUANTIZED_CHECKPOINTS = (*CHECKPOINT_FORMATS, *_ALIASES)
"""Values of `--quantization` that name the form of a checkpoint."""

_OLDER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Written beside config.json by tools that came before `quantization_config`, and whose they are."""


@dataclass(frozen=True)
class QuantizationConfig:
    """The tool that wrote a quantized checkpoint, a key of CHECKPOINT_FORMATS, and its settings as read."""

    method: str
    fields: Fields


def read_quantization(config: Fields, folder: Path) -> QuantizationConfig | None:
    """None for a checkpoint in floats. Raises UnsupportedModelError for a method that has no reader."""
    found = config.get("quantization_config", "compression_config")
    if found is not None:
        return _checked(found, config.path, "quantization_config")
    for name, method in _OLDER_FILES.items():
        settings = read_json(folder / name)
        if settings is not None:
            return _checked(settings, str(folder / name), name, method)
    return None


def settle_quantization(given: str | None, checkpoint: QuantizationConfig | None, at_load: tuple[str, ...]) -> str | None:
    """What to round a checkpoint's weights to while it is read: `given`, or None where it only names the checkpoint's own form.

    `at_load`: what floats can be rounded to. Raises ConfigError where `given` and the checkpoint differ.
    """
    if checkpoint is None:
        if given is None or given in at_load:
            return given
        raise ConfigError(
            f"quantization must be one of {', '.join(at_load)} or none for a checkpoint in floats, got {given!r}: "
            "its config.json has no quantization_config"
        )
    if given is not None and _ALIASES.get(given, given) != checkpoint.method:
        raise ConfigError(
            f"quantization must be {checkpoint.method} or none for a checkpoint that is quantized by it already, got {given!r}"
        )
    return None


def _checked(found: Any, path: str, field: str, method: str | None = None) -> QuantizationConfig:
    if not isinstance(found, dict):
        raise Fields({}, path).wrong(field, "an object", found)
    name = found.get("quant_method", method)
    name = _ALIASES.get(name, name) if isinstance(name, str) else name
    if name not in CHECKPOINT_FORMATS:
        known = ", ".join(CHECKPOINT_FORMATS) or "none"
        raise UnsupportedModelError(
            f"{path}: quant_method {describe(name)} is not supported, only {known}; use the checkpoint's unquantized form"
        )
    return QuantizationConfig(name, Fields(found, path))
