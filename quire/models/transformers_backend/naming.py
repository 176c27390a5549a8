"""From the names of a checkpoint to those of the class in transformers, by transformers' own table of changes."""

from __future__ import annotations

import re
from typing import Any

from quire.errors import ModelLoadError
from quire.models.transformers_backend.layers import EXPERT_PARTS


class Naming:
    """The names of one model."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        changes = get_model_conversion_mapping(model)
        self._converters = [change for change in changes if isinstance(change, WeightConverter)]
        self._renamings = [change for change in changes if not isinstance(change, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._known = dict.fromkeys(model.state_dict(keep_vars=True), True)
        self._ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]

    def rename(self, name: str) -> str | None:
        """A name in the model, or None for a tensor that transformers passes over too."""
        from transformers.core_model_loading import rename_source_key

        found, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._known)
        if pattern is not None:
            return self._part_of_expert(name, found, pattern)
        if found not in self._known and any(ignored.search(found) for ignored in self._ignored):
            return None
        return found

    def _part_of_expert(self, name: str, target: str, pattern: str) -> str:
        """The name of one expert's weight, which transformers would join with the others'."""
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        layer, _, joined = target.rpartition(".")
        number = re.search(r"\.experts\.(\d+)\.", name)
        parts = EXPERT_PARTS.get(joined, ())
        steps = [type(step).__name__ for step in converter.operations]
        if number is None or len(parts) != len(converter.source_patterns) or steps != _EXPERT_STEPS[: len(parts)]:
            raise ModelLoadError(
                f"tensor {name} would have to be converted ({', '.join(steps)}), which works for the weights of experts only"
            )
        return f"{layer}.{number[1]}.{parts[converter.source_patterns.index(pattern)]}.weight"


_EXPERT_STEPS = ["MergeModulelist", "Concatenate"]
"""How transformers joins the weights of experts: their gates and ups one below the other, or their downs alone."""
