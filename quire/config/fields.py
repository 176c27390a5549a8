"""A JSON object from a file with typed access; every complaint names the file and the field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.errors import ModelLoadError, describe


@dataclass(frozen=True)
class Fields:
    """The fields of one file. A field that is null counts as absent."""

    values: dict[str, Any] = field(default_factory=dict)
    path: str = "config.json"
    """For messages."""

    def get(self, *names: str) -> Any:
        """The first of these fields that is there and not null, or None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def positive(self, *names: str, default: int | None = None) -> int:
        """An integer of at least 1 under one of its names; ModelLoadError when absent without a default."""
        value = self.get(*names)
        value = default if value is None else value
        if value is None:
            raise ModelLoadError(f"{self.path}: field {names[0]} is missing")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(names[0], "an integer of at least 1", value)
        return value

    def number(self, *names: str, default: float) -> float:
        """A finite number under one of its names, or `default` when absent."""
        value = self.get(*names)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(names[0], "a number", value)
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number, or None when absent."""
        return None if self.get(name) is None else self.number(name, default=0.0)

    def flag(self, name: str, default: bool) -> bool:
        """true or false, or `default` when absent."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def wrong(self, name: str, rule: str, value: object) -> ModelLoadError:
        """An error about one field."""
        return ModelLoadError(f"{self.path}: field {name} must be {rule}, got {describe(value)}")


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in `file`; None when there is no such file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelLoadError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{file} must hold a JSON object, got {describe(values)}")
    return values
