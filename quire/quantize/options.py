"""What `quire quantize` is asked to do, and whether that makes sense."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.errors import ConfigError
from quire.loader.configuration import GGUF_SUFFIX
from quire.quantize.gguf.mixtures import ALIASES, MIXTURES

METHODS = ("rtn", "awq", "gptq")
FORMATS = ("safetensors", "gguf")
LAYOUTS = ("compressed-tensors", "gptq")
TYPES = (*MIXTURES, *ALIASES)
_OF_SAFETENSORS = {"bits": 4, "group_size": 128, "layout": "compressed-tensors"}
"""Options of that format alone, and what they are unless given."""


@dataclass(frozen=True)
class QuantizeOptions:
    """None: what `settled` puts there."""

    model: str
    output: str
    """A folder; with format gguf a file."""
    method: str | None = None
    format: str = "safetensors"
    type: str | None = None
    """Of format gguf: a type or mixture of types, as llama.cpp calls it."""
    layout: str | None = None
    bits: int | None = None
    group_size: int | None = None
    """Inputs that share a scale; 0: all of an output's."""
    symmetric: bool | None = None
    """Whether there are no zero points."""
    calibration: str | None = None
    num_samples: int = 128
    max_tokens: int = 512
    """Of one sample."""

    @property
    def is_gguf(self) -> bool:
        return self.format == "gguf"

    def settled(self) -> QuantizeOptions:
        """With the defaults of its format. Raises ConfigError for what makes no sense."""
        _check_one_of("format", self.format, FORMATS)
        method = self.method or ("rtn" if self.is_gguf else "gptq")
        _check_one_of("method", method, METHODS)
        settled = dataclasses.replace(self, method=method)
        settled = settled._settled_for_gguf() if self.is_gguf else settled._settled_for_safetensors()
        if self.calibration is None and method != "rtn":
            raise ConfigError(f"give calibration, a file of text: method {method} needs to see what the layers read")
        for name in ("num_samples", "max_tokens"):
            if getattr(self, name) < 1 + (name == "max_tokens"):
                raise ConfigError(f"{name} must be at least {1 + (name == 'max_tokens')}, got {getattr(self, name)}")
        return settled

    def _settled_for_gguf(self) -> QuantizeOptions:
        for name in (*_OF_SAFETENSORS, "symmetric"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} is for format safetensors, got {getattr(self, name)}: in format gguf type says it all")
        if self.method != "rtn":
            raise ConfigError(f"method must be rtn for format gguf, got {self.method!r}: awq and gptq write format safetensors")
        if self.type is None:
            raise ConfigError(f"give type for format gguf, one of {', '.join(TYPES)}")
        _check_one_of("type", self.type, TYPES)
        if not self.output.endswith(GGUF_SUFFIX) or Path(self.output).exists():
            raise ConfigError(f"output must be a file {GGUF_SUFFIX} that is not there yet for format gguf, got {self.output!r}")
        return self

    def _settled_for_safetensors(self) -> QuantizeOptions:
        if self.type is not None:
            raise ConfigError(f"type is for format gguf, got {self.type!r}: in format safetensors bits and group_size say it all")
        stated = {name: getattr(self, name) for name in _OF_SAFETENSORS}
        values: dict[str, Any] = _OF_SAFETENSORS | {name: value for name, value in stated.items() if value is not None}
        _check_one_of("layout", values["layout"], LAYOUTS)
        if values["bits"] not in (4, 8):
            raise ConfigError(f"bits must be 4 or 8, got {values['bits']}")
        if values["group_size"] not in (0, 32, 64, 128):
            raise ConfigError(f"group_size must be 32, 64, 128, or 0 for whole rows, got {values['group_size']}")
        if values["bits"] == 8 and self.symmetric is False:
            raise ConfigError("bits 8 has no zero points: leave out --no-symmetric, or take bits 4")
        if Path(self.output).exists() and not Path(self.output).is_dir():
            raise ConfigError(f"output must be a folder that is not there or empty, got the file {self.output!r}")
        if Path(self.output).exists() and any(Path(self.output).iterdir()):
            raise ConfigError(f"output must be a folder that is not there or empty, got {self.output!r}")
        symmetric = values["bits"] == 8 or (self.method != "awq" if self.symmetric is None else self.symmetric)
        return dataclasses.replace(self, symmetric=symmetric, **values)


def _check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
