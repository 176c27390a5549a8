"""Which class runs which architecture: one line each, imported when first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from quire.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

_ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "quire.models.llama:LlamaForCausalLM",
    "LLaMAForCausalLM": "quire.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "quire.models.mistral:MistralForCausalLM",
    "Qwen2ForCausalLM": "quire.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "quire.models.qwen3:Qwen3ForCausalLM",
}

_registered: dict[str, str | type[nn.Module]] = {}


class ModelRegistry:
    """The architectures that Quire runs, its own and those that plugins add."""

    @staticmethod
    def get_supported_archs() -> list[str]:
        """Names as they stand in a checkpoint's `architectures`."""
        return sorted({**_ARCHITECTURES, **_registered})

    @staticmethod
    def register_model(architecture: str, model: str | type[nn.Module]) -> None:
        """Run `architecture` with a class, or with "module:class" imported when needed; replaces one of that name."""
        if isinstance(model, str) and model.count(":") != 1:
            raise ValueError(f'model must be a class or "module:class", got {model!r}')
        _registered[architecture] = model

    @staticmethod
    def resolve(architecture: str) -> type[nn.Module]:
        """The class for `architecture`; raises UnsupportedModelError that lists what there is."""
        target = _registered.get(architecture) or _ARCHITECTURES.get(architecture)
        if target is None:
            known = ", ".join(ModelRegistry.get_supported_archs())
            raise UnsupportedModelError(
                f"architecture {architecture} is not supported; supported are {known}"
            )
        if not isinstance(target, str):
            return target
        module, name = target.split(":")
        found: type[nn.Module] = getattr(importlib.import_module(module), name)
        return found


register_model = ModelRegistry.register_model
