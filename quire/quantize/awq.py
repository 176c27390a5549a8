"""AWQ (2306.00978): inputs that carry large activations are scaled up in the weights that read them, and down in what feeds them,
so that rounding hurts them less; the model computes the same.

What may feed: a norm, which multiplies by its weight, if nothing else reads its outputs; the rows of `up` in a gated block, which
are multiplied by something else; ReLU's layer, since ReLU lets a factor through; the values of an attention whose query heads
have a key/value head each, since it only averages them. A family whose norms come after its blocks has no such norms.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.config.types import HFConfig
from quire.errors import UnsupportedModelError
from quire.quantize.grid import Grid

_POWERS = [i / 20 for i in range(20)]


@dataclass(frozen=True)
class Link:
    """Modules of Quire's model within a block: one whose outputs are scaled, and the linear layers that read them."""

    source: str
    readers: tuple[str, ...]
    part: Hashable = None
    """The part of the source's outputs that is read; None: all."""


@dataclass(frozen=True)
class Family:
    """Where the parts are that most decoders have. Empty: there is none, or none that lets a factor through."""

    blocks: str = "model.layers"
    attention_norm: str = "input_layernorm"
    qkv: str = "self_attn.qkv_proj"
    output: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    """The same as `attention_norm` where both read one norm."""
    mlp: str = "mlp.gate_up_proj"
    down: str = "mlp.down_proj"
    is_gated: bool = True
    is_relu: bool = False

    def links(self, has_own_values: bool) -> Iterator[Link]:
        """Those of one block; `has_own_values`: each query head has a key/value head of its own."""
        if self.attention_norm and self.attention_norm == self.mlp_norm:
            yield Link(self.attention_norm, (self.qkv, self.mlp))
        else:
            if self.attention_norm:
                yield Link(self.attention_norm, (self.qkv,))
            if self.mlp_norm:
                yield Link(self.mlp_norm, (self.mlp,))
        if has_own_values:
            yield Link(self.qkv, (self.output,), "v")
        if self.is_gated:
            yield Link(self.mlp, (self.down,), 1)
        elif self.is_relu:
            yield Link(self.mlp, (self.down,))


def _llama(config: HFConfig) -> Family:
    return Family()


def _gemma2(config: HFConfig) -> Family:
    return Family(mlp_norm="pre_feedforward_layernorm")


def _olmo2(config: HFConfig) -> Family:
    return Family(attention_norm="", mlp_norm="")


def _baichuan(config: HFConfig) -> Family:
    return Family(qkv="self_attn.W_pack")


def _qwen(config: HFConfig) -> Family:
    return Family("transformer.h", "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.gate_up_proj", "mlp.c_proj")


def _chatglm(config: HFConfig) -> Family:
    names = "self_attention.query_key_value", "self_attention.dense", "post_attention_layernorm"
    return Family("transformer.encoder.layers", "input_layernorm", *names, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def _gpt2(config: HFConfig) -> Family:
    return _plain(config, "transformer.h", "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def _gptj(config: HFConfig) -> Family:
    return _plain(config, "transformer.h", "ln_1", "attn.qkv_proj", "attn.out_proj", "ln_1", "mlp.fc_in", "mlp.fc_out")


def _phi(config: HFConfig) -> Family:
    norm = "input_layernorm"
    return _plain(config, "model.layers", norm, "self_attn.qkv_proj", "self_attn.dense", norm, "mlp.fc1", "mlp.fc2")


def _starcoder2(config: HFConfig) -> Family:
    norms = "input_layernorm", "post_attention_layernorm"
    names = "self_attn.qkv_proj", "self_attn.o_proj", norms[1], "mlp.c_fc", "mlp.c_proj"
    return _plain(config, "model.layers", norms[0], *names)


def _gpt_neox(config: HFConfig) -> Family:
    names = "attention.query_key_value", "attention.dense", "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    return _plain(config, "gpt_neox.layers", "input_layernorm", *names)


def _opt(config: HFConfig) -> Family:
    is_pre_norm = config.fields.flag("do_layer_norm_before", True)
    norms = ("self_attn_layer_norm", "final_layer_norm") if is_pre_norm else ("", "")
    names = "self_attn.qkv_proj", "self_attn.out_proj", norms[1], "fc1", "fc2"
    return _plain(config, "model.decoder.layers", norms[0], *names)


def _bloom(config: HFConfig) -> Family:
    added = config.fields.flag("apply_residual_connection_post_layernorm", False)
    norms = ("", "") if added else ("input_layernorm", "post_attention_layernorm")
    names = "self_attention.query_key_value", "self_attention.dense", norms[1], "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    return _plain(config, "transformer.h", norms[0], *names)


def _falcon(config: HFConfig) -> Family:
    is_new = config.fields.flag("new_decoder_architecture", False)
    norms = "input_layernorm", "input_layernorm"
    if is_new and config.fields.positive("num_ln_in_parallel_attn", default=2) == 2:
        norms = "ln_attn", "ln_mlp"
    elif not is_new and not config.fields.flag("parallel_attn", True):
        norms = "input_layernorm", "post_attention_layernorm"
    names = "self_attention.query_key_value", "self_attention.dense", norms[1], "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    return _plain(config, "transformer.h", norms[0], *names)


def _stablelm(config: HFConfig) -> Family:
    is_parallel = config.fields.flag("use_parallel_residual", False)
    return Family(mlp_norm="input_layernorm" if is_parallel else "post_attention_layernorm")


def _plain(
    config: HFConfig, blocks: str, attention_norm: str, qkv: str, output: str, mlp_norm: str, mlp: str, down: str
) -> Family:
    """A block without a gate."""
    is_relu = config.hidden_act == "relu"
    return Family(blocks, attention_norm, qkv, output, mlp_norm, mlp, down, is_gated=False, is_relu=is_relu)


_FAMILIES: dict[str, Callable[[HFConfig], Family]] = {
    "BaichuanForCausalLM": _baichuan,
    "BloomForCausalLM": _bloom,
    "ChatGLMForCausalLM": _chatglm,
    "FalconForCausalLM": _falcon,
    "GPT2LMHeadModel": _gpt2,
    "GPTJForCausalLM": _gptj,
    "GPTNeoXForCausalLM": _gpt_neox,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma2,
    "GemmaForCausalLM": _llama,
    "GlmForCausalLM": _llama,
    "GraniteForCausalLM": _llama,
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _llama,
    "OPTForCausalLM": _opt,
    "Olmo2ForCausalLM": _olmo2,
    "Phi3ForCausalLM": _llama,
    "PhiForCausalLM": _phi,
    "QWenLMHeadModel": _qwen,
    "Qwen2ForCausalLM": _llama,
    "Qwen3ForCausalLM": _llama,
    "StableLmForCausalLM": _stablelm,
    "Starcoder2ForCausalLM": _starcoder2,
}
"""By the name of Quire's class."""


def links_of(class_name: str, config: HFConfig) -> Iterator[Link]:
    """All links of a model, block by block, by the modules' whole names. Raises UnsupportedModelError for other classes."""
    if class_name not in _FAMILIES:
        raise UnsupportedModelError(
            f"method awq is for models of the classes {', '.join(sorted(_FAMILIES))}, not for {config.architecture}: "
            "use method gptq or rtn"
        )
    family = _FAMILIES[class_name](config)
    links = list(family.links(config.num_attention_heads == config.num_key_value_heads))
    for layer in range(config.num_hidden_layers):
        prefix = f"{family.blocks}.{layer}."
        for link in links:
            yield Link(prefix + link.source, tuple(prefix + reader for reader in link.readers), link.part)


def find_scales(readers: list[Tensor], hessian: Tensor, magnitudes: Tensor, grid: Grid) -> Tensor:
    """Factors float32 [K] for the inputs of weights float32 [N, K] that read the same `magnitudes` [K], the mean |x|.

    Of several powers of the magnitudes, the one whose rounding changes the outputs least, by `hessian` [K, K], the mean of x x^T.
    """
    best_loss, best = torch.inf, torch.ones_like(magnitudes)
    for power in _POWERS:
        scales = magnitudes.clamp(min=1e-4).pow(power)
        scales = scales / (scales.max() * scales.min()).sqrt()
        loss = sum(_loss(weight, scales, hessian, grid) for weight in readers)
        if loss < best_loss:
            best_loss, best = loss, scales
    return best


def _loss(weight: Tensor, scales: Tensor, hessian: Tensor, grid: Grid) -> float:
    steps = grid.whole_range(weight * scales)
    error = steps.decode(steps.encode(weight * scales)) / scales - weight
    return float(((error @ hessian) * error).sum())


def divide_norm(weight: Tensor, scales: Tensor, dtype: torch.dtype, plus_one: bool) -> tuple[Tensor, Tensor]:
    """A norm's weight [K] divided by factors, in the checkpoint's `dtype`, and the factors that its rounded weight leaves.

    With `plus_one` the norm multiplies by 1 + weight.
    """
    offset = 1.0 if plus_one else 0.0
    whole = weight.float() + offset
    divided = (whole / scales - offset).to(dtype)
    left = divided.float() + offset
    return divided, torch.where(left == 0, scales, whole / left)


def divide_rows(weight: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
    """A weight [N, K], or a bias [N], float32, with these rows divided by one factor each."""
    divided = weight.clone()
    divided[rows] = weight[rows] / (scales[:, None] if weight.dim() == 2 else scales)
    return divided
