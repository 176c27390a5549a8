"""Which class runs which architecture: one line each, imported when first asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from quire.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

_ARCHITECTURES: dict[str, str] = {
    "BaiChuanForCausalLM": "quire.models.baichuan:BaichuanForCausalLM",
    "BaichuanForCausalLM": "quire.models.baichuan:BaichuanForCausalLM",
    "BloomForCausalLM": "quire.models.bloom:BloomForCausalLM",
    "ChatGLMForConditionalGeneration": "quire.models.chatglm:ChatGLMForCausalLM",
    "ChatGLMModel": "quire.models.chatglm:ChatGLMForCausalLM",
    "FalconForCausalLM": "quire.models.falcon:FalconForCausalLM",
    "GPT2LMHeadModel": "quire.models.gpt2:GPT2LMHeadModel",
    "GPTJForCausalLM": "quire.models.gptj:GPTJForCausalLM",
    "GPTNeoXForCausalLM": "quire.models.gpt_neox:GPTNeoXForCausalLM",
    "Gemma2ForCausalLM": "quire.models.gemma2:Gemma2ForCausalLM",
    "Gemma3ForCausalLM": "quire.models.gemma3:Gemma3ForCausalLM",
    "GemmaForCausalLM": "quire.models.gemma:GemmaForCausalLM",
    "Glm4ForCausalLM": "quire.models.glm:GlmForCausalLM",
    "GlmForCausalLM": "quire.models.glm:GlmForCausalLM",
    "GraniteForCausalLM": "quire.models.granite:GraniteForCausalLM",
    "LLaMAForCausalLM": "quire.models.llama:LlamaForCausalLM",
    "LlamaForCausalLM": "quire.models.llama:LlamaForCausalLM",
    "LlavaForConditionalGeneration": "quire.models.llava:LlavaForConditionalGeneration",
    "MistralForCausalLM": "quire.models.mistral:MistralForCausalLM",
    "OPTForCausalLM": "quire.models.opt:OPTForCausalLM",
    "Olmo2ForCausalLM": "quire.models.olmo2:Olmo2ForCausalLM",
    "Phi3ForCausalLM": "quire.models.phi3:Phi3ForCausalLM",
    "PhiForCausalLM": "quire.models.phi:PhiForCausalLM",
    "QWenLMHeadModel": "quire.models.qwen:QWenLMHeadModel",
    "Qwen2ForCausalLM": "quire.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "quire.models.qwen3:Qwen3ForCausalLM",
    "StableLMEpochForCausalLM": "quire.models.stablelm:StableLmForCausalLM",
    "StableLmForCausalLM": "quire.models.stablelm:StableLmForCausalLM",
    "Starcoder2ForCausalLM": "quire.models.starcoder2:Starcoder2ForCausalLM",
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
        """The class for `architecture`; raises UnsupportedModelError that names the nearest and all that there are."""
        target = _registered.get(architecture) or _ARCHITECTURES.get(architecture)
        if target is None:
            known = ModelRegistry.get_supported_archs()
            near = difflib.get_close_matches(architecture, known, 3, cutoff=0.7)
            raise UnsupportedModelError(
                f"architecture {architecture} is not supported"
                + (f", but {' and '.join(near)} {'are' if len(near) > 1 else 'is'}" if near else "")
                + f"; supported are {', '.join(known)}"
            )
        if not isinstance(target, str):
            return target
        module, name = target.split(":")
        found: type[nn.Module] = getattr(importlib.import_module(module), name)
        return found


register_model = ModelRegistry.register_model
