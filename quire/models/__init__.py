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
    "BertForMaskedLM": "quire.models.bert:BertModel",
    "BertForSequenceClassification": "quire.models.bert:BertForSequenceClassification",
    "BertModel": "quire.models.bert:BertModel",
    "BloomForCausalLM": "quire.models.bloom:BloomForCausalLM",
    "ChatGLMForConditionalGeneration": "quire.models.chatglm:ChatGLMForCausalLM",
    "ChatGLMModel": "quire.models.chatglm:ChatGLMForCausalLM",
    "DeepseekV2ForCausalLM": "quire.models.deepseek_v2:DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM": "quire.models.deepseek_v3:DeepseekV3ForCausalLM",
    "DistilBertForMaskedLM": "quire.models.distilbert:DistilBertModel",
    "DistilBertModel": "quire.models.distilbert:DistilBertModel",
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
    "MixtralForCausalLM": "quire.models.mixtral:MixtralForCausalLM",
    "OPTForCausalLM": "quire.models.opt:OPTForCausalLM",
    "Olmo2ForCausalLM": "quire.models.olmo2:Olmo2ForCausalLM",
    "Phi3ForCausalLM": "quire.models.phi3:Phi3ForCausalLM",
    "PhiForCausalLM": "quire.models.phi:PhiForCausalLM",
    "QWenLMHeadModel": "quire.models.qwen:QWenLMHeadModel",
    "Qwen2ForCausalLM": "quire.models.qwen2:Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM": "quire.models.qwen2_moe:Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM": "quire.models.qwen3:Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM": "quire.models.qwen3_moe:Qwen3MoeForCausalLM",
    "RobertaForMaskedLM": "quire.models.roberta:RobertaModel",
    "RobertaForSequenceClassification": "quire.models.roberta:RobertaForSequenceClassification",
    "RobertaModel": "quire.models.roberta:RobertaModel",
    "StableLMEpochForCausalLM": "quire.models.stablelm:StableLmForCausalLM",
    "StableLmForCausalLM": "quire.models.stablelm:StableLmForCausalLM",
    "Starcoder2ForCausalLM": "quire.models.starcoder2:Starcoder2ForCausalLM",
    "XLMRobertaForMaskedLM": "quire.models.roberta:RobertaModel",
    "XLMRobertaForSequenceClassification": "quire.models.roberta:RobertaForSequenceClassification",
    "XLMRobertaModel": "quire.models.roberta:RobertaModel",
}

_ENCODERS = frozenset(
    {
        "BertForMaskedLM",
        "BertForSequenceClassification",
        "BertModel",
        "DistilBertForMaskedLM",
        "DistilBertModel",
        "RobertaForMaskedLM",
        "RobertaForSequenceClassification",
        "RobertaModel",
        "XLMRobertaForMaskedLM",
        "XLMRobertaForSequenceClassification",
        "XLMRobertaModel",
    }
)
"""Architectures whose tokens see the whole prompt: they give vectors, no text."""
_HEADLESS = {
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}
"""Architectures that are others without an output head: they give vectors, no text."""

_registered: dict[str, str | type[nn.Module]] = {}


class ModelRegistry:
    """The architectures that Quire runs, its own and those that plugins add."""

    @staticmethod
    def get_supported_archs() -> list[str]:
        """Names as they stand in a checkpoint's `architectures`."""
        return sorted({**_ARCHITECTURES, **_HEADLESS, **_registered})

    @staticmethod
    def register_model(architecture: str, model: str | type[nn.Module]) -> None:
        """Run `architecture` with a class, or with "module:class" imported when needed; replaces one of that name."""
        if isinstance(model, str) and model.count(":") != 1:
            raise ValueError(f'model must be a class or "module:class", got {model!r}')
        _registered[architecture] = model

    @staticmethod
    def is_encoder(architecture: str) -> bool:
        """Whether its tokens see the whole prompt; known without loading its class."""
        return architecture in _ENCODERS and architecture not in _registered

    @staticmethod
    def is_headless(architecture: str) -> bool:
        """Whether it is a decoder without an output head; known without loading its class."""
        return architecture in _HEADLESS and architecture not in _registered

    @staticmethod
    def has(architecture: str) -> bool:
        """Whether there is a class for `architecture`."""
        return architecture in _registered or architecture in _ARCHITECTURES or architecture in _HEADLESS

    @staticmethod
    def target(architecture: str) -> str:
        """Where the class of a supported `architecture` is: "module:class". Names of one class are one architecture."""
        whole = _HEADLESS.get(architecture, architecture)
        target = _registered.get(architecture) or _ARCHITECTURES[whole]
        return target if isinstance(target, str) else f"{target.__module__}:{target.__name__}"

    @staticmethod
    def check(architecture: str) -> None:
        """Raises UnsupportedModelError that names the nearest architectures and all that there are."""
        if ModelRegistry.has(architecture):
            return
        known = ModelRegistry.get_supported_archs()
        near = difflib.get_close_matches(architecture, known, 3, cutoff=0.7)
        raise UnsupportedModelError(
            f"architecture {architecture} is not supported"
            + (f", but {' and '.join(near)} {'are' if len(near) > 1 else 'is'}" if near else "")
            + "; with --model-impl transformers (model_impl='transformers') it may run through transformers, which is slower"
            + f"; supported are {', '.join(known)}"
        )

    @staticmethod
    def resolve(architecture: str) -> type[nn.Module]:
        """The class for `architecture`; raises UnsupportedModelError as `check` does."""
        ModelRegistry.check(architecture)
        if ModelRegistry.is_headless(architecture):
            whole = ModelRegistry.resolve(_HEADLESS[architecture])
            headless: type[nn.Module] = importlib.import_module("quire.models.headless").without_head(whole)
            return headless
        target = _registered.get(architecture) or _ARCHITECTURES[architecture]
        if not isinstance(target, str):
            return target
        module, name = target.split(":")
        found: type[nn.Module] = getattr(importlib.import_module(module), name)
        return found


register_model = ModelRegistry.register_model
