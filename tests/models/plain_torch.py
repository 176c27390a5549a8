"""Baichuan, the first Qwen and ChatGLM, which transformers has no classes for: written out in plain torch from their papers and
the published layout of their checkpoints, sharing nothing with `quire`. One prompt at a time, no cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.models.checkpoints import Greedy

Weights = dict[str, Tensor]
Config = dict[str, Any]
VOCAB_SIZE, HIDDEN, LAYERS = 199, 96, 3


@dataclass
class PlainModel:
    """A checkpoint and what computes its logits."""

    config: Config
    weights: Weights
    compute: Callable[[Weights, Config, Tensor], Tensor]

    def logits(self, ids: list[int]) -> Tensor:
        """[len(ids), vocab_size]."""
        return self.compute(self.weights, self.config, torch.tensor(ids))

    def greedy(self, prompts: list[list[int]], num_tokens: int) -> list[Greedy]:
        """The greedy continuation of every prompt."""
        return [self._continue(list(prompt), num_tokens) for prompt in prompts]

    def _continue(self, ids: list[int], num_tokens: int) -> Greedy:
        rows, length = [], len(ids)
        for _ in range(num_tokens):
            rows.append(self.logits(ids)[-1].log_softmax(-1))
            ids.append(int(rows[-1].argmax()))
        return Greedy(ids[length:], torch.stack(rows))

    def save(self, path: Path) -> Path:
        """Write it in Hugging Face format."""
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(self.config))
        return path


def _draw(seed: int, shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Matrices, norms around 1 and small biases."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and not name.endswith("bias")
        weights[name] = 1 + 0.2 * drawn if is_norm else 0.15 * drawn
    return weights


# -- what the three have in common ---------------------------------------------------------------------------------


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _heads(x: Tensor, size: int) -> Tensor:
    """[T, H * size] -> [H, T, size]."""
    return x.view(len(x), -1, size).transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None) -> Tensor:
    """q [H, T, D], k and v [KH, T, D] -> [T, H * D]."""
    copies = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    steps = torch.arange(q.shape[1])
    if slopes is not None:
        scores = scores + slopes[:, None, None] * (steps[None, :] - steps[:, None])
    scores = scores.masked_fill(steps[None, :] > steps[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def _complex_turns(length: int, width: int, base: float) -> Tensor:
    """e^(i position angle), [length, width / 2]."""
    angles = torch.arange(length)[:, None] * base ** (-torch.arange(0, width, 2) / width)
    return torch.polar(torch.ones_like(angles), angles)


def _turn_halves(x: Tensor, base: float = 10000.0) -> Tensor:
    """Component i of [H, T, D] turns with i + D / 2."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * _complex_turns(x.shape[1], x.shape[-1], base)
    return torch.cat((turned.real, turned.imag), -1)


def _turn_neighbours(x: Tensor, width: int, base: float) -> Tensor:
    """Components 2i and 2i + 1 of the first `width` of [H, T, D] turn together."""
    pairs = torch.view_as_complex(x[..., :width].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * _complex_turns(x.shape[1], width, base)).flatten(-2)
    return torch.cat((turned, x[..., width:]), -1)


# -- Baichuan --------------------------------------------------------------------------------------------------------


def _alibi_slopes(count: int) -> Tensor:
    """For 3 heads: those of 2, then the first of 4 (and in general as the ALiBi paper's code has it)."""
    if math.log2(count).is_integer():
        return torch.tensor([2 ** (-8 * (i + 1) / count) for i in range(count)])
    smaller = 2 ** math.floor(math.log2(count))
    return torch.cat((_alibi_slopes(smaller), _alibi_slopes(2 * smaller)[::2][: count - smaller]))


def baichuan(num_heads: int, has_alibi: bool, has_unit_rows: bool) -> PlainModel:
    """7B turns queries and keys, 13B has ALiBi; Baichuan 2 divides each row of its output head by its length."""
    inner = 172
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN)}
    for i in range(LAYERS):
        shapes |= {
            f"model.layers.{i}.self_attn.W_pack.weight": (3 * HIDDEN, HIDDEN),
            f"model.layers.{i}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"model.layers.{i}.mlp.gate_proj.weight": (inner, HIDDEN),
            f"model.layers.{i}.mlp.up_proj.weight": (inner, HIDDEN),
            f"model.layers.{i}.mlp.down_proj.weight": (HIDDEN, inner),
            f"model.layers.{i}.input_layernorm.weight": (HIDDEN,),
            f"model.layers.{i}.post_attention_layernorm.weight": (HIDDEN,),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB_SIZE, HIDDEN)}
    config = {
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": inner,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": num_heads,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "model_max_length": 512,
        "normalized_head": has_unit_rows,
    }
    if not has_alibi:
        config["max_position_embeddings"] = 512
    return PlainModel(config, _draw(1, shapes), _baichuan_logits)


def _baichuan_logits(w: Weights, config: Config, ids: Tensor) -> Tensor:
    eps, num_heads = config["rms_norm_eps"], config["num_attention_heads"]
    has_alibi = "max_position_embeddings" not in config
    x = w["model.embed_tokens.weight"][ids]
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        y = _norm(x, w[f"{layer}.input_layernorm.weight"], eps)
        packed = y @ w[f"{layer}.self_attn.W_pack.weight"].T
        q, k, v = (_heads(part, HIDDEN // num_heads) for part in packed.chunk(3, -1))
        if has_alibi:
            mixed = _attend(q, k, v, _alibi_slopes(num_heads))
        else:
            mixed = _attend(_turn_halves(q), _turn_halves(k), v)
        x = x + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        y = _norm(x, w[f"{layer}.post_attention_layernorm.weight"], eps)
        gate, up = (y @ w[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    if config["normalized_head"]:
        head = head / head.pow(2).sum(-1, keepdim=True).sqrt()
    return _norm(x, w["model.norm.weight"], eps) @ head.T


# -- the first Qwen --------------------------------------------------------------------------------------------------


def qwen(num_heads: int, head_dim: int, base: float) -> PlainModel:
    """Half of `intermediate_size` is the width of w1 and w2; the projection of queries, keys and values has a bias."""
    inner, width = 180, num_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCAB_SIZE, HIDDEN)}
    for i in range(LAYERS):
        shapes |= {
            f"transformer.h.{i}.ln_1.weight": (HIDDEN,),
            f"transformer.h.{i}.attn.c_attn.weight": (3 * width, HIDDEN),
            f"transformer.h.{i}.attn.c_attn.bias": (3 * width,),
            f"transformer.h.{i}.attn.c_proj.weight": (HIDDEN, width),
            f"transformer.h.{i}.ln_2.weight": (HIDDEN,),
            f"transformer.h.{i}.mlp.w1.weight": (inner // 2, HIDDEN),
            f"transformer.h.{i}.mlp.w2.weight": (inner // 2, HIDDEN),
            f"transformer.h.{i}.mlp.c_proj.weight": (HIDDEN, inner // 2),
        }
    shapes |= {"transformer.ln_f.weight": (HIDDEN,), "lm_head.weight": (VOCAB_SIZE, HIDDEN)}
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": inner,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": num_heads,
        "kv_channels": head_dim,
        "layer_norm_epsilon": 1e-5,
        "rotary_emb_base": base,
        "rotary_pct": 1.0,
        "seq_length": 512,
        "max_position_embeddings": 2048,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "tie_word_embeddings": False,
    }
    return PlainModel(config, _draw(2, shapes), _qwen_logits)


def _qwen_logits(w: Weights, config: Config, ids: Tensor) -> Tensor:
    eps, base = config["layer_norm_epsilon"], config["rotary_emb_base"]
    x = w["transformer.wte.weight"][ids]
    for i in range(LAYERS):
        block = f"transformer.h.{i}"
        y = _norm(x, w[f"{block}.ln_1.weight"], eps)
        packed = y @ w[f"{block}.attn.c_attn.weight"].T + w[f"{block}.attn.c_attn.bias"]
        q, k, v = (_heads(part, config["kv_channels"]) for part in packed.chunk(3, -1))
        x = x + _attend(_turn_halves(q, base), _turn_halves(k, base), v) @ w[f"{block}.attn.c_proj.weight"].T
        y = _norm(x, w[f"{block}.ln_2.weight"], eps)
        first, second = (y @ w[f"{block}.mlp.{name}.weight"].T for name in ("w1", "w2"))
        x = x + (first * F.silu(second)) @ w[f"{block}.mlp.c_proj.weight"].T
    return _norm(x, w["transformer.ln_f.weight"], eps) @ w["lm_head.weight"].T


# -- ChatGLM2 and ChatGLM3 -------------------------------------------------------------------------------------------


def chatglm(num_heads: int, num_groups: int | None, head_dim: int, ratio: float = 1.0) -> PlainModel:
    """Groups share keys and values (None: no groups, and q, k and v of each head lie together)."""
    inner, width = 172, num_heads * head_dim
    packed = width + 2 * (num_groups or num_heads) * head_dim
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (VOCAB_SIZE, HIDDEN)}
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.self_attention.query_key_value.weight": (packed, HIDDEN),
            f"{layer}.self_attention.query_key_value.bias": (packed,),
            f"{layer}.self_attention.dense.weight": (HIDDEN, width),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}.mlp.dense_h_to_4h.weight": (2 * inner, HIDDEN),
            f"{layer}.mlp.dense_4h_to_h.weight": (HIDDEN, inner),
        }
    shapes |= {
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCAB_SIZE, HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": (head_dim // 4,),
    }
    config = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "padded_vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": inner,
        "num_layers": LAYERS,
        "num_attention_heads": num_heads,
        "kv_channels": head_dim,
        "multi_query_attention": num_groups is not None,
        "multi_query_group_num": num_groups or 1,
        "layernorm_epsilon": 1e-5,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "rope_ratio": ratio,
        "seq_length": 512,
        "tie_word_embeddings": False,
    }
    return PlainModel(config, _draw(3, shapes), _chatglm_logits)


def _chatglm_logits(w: Weights, config: Config, ids: Tensor) -> Tensor:
    eps, size, base = config["layernorm_epsilon"], config["kv_channels"], 10000.0 * config["rope_ratio"]
    width = config["num_attention_heads"] * size
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}"
        y = _norm(x, w[f"{layer}.input_layernorm.weight"], eps)
        attention = f"{layer}.self_attention"
        packed = y @ w[f"{attention}.query_key_value.weight"].T + w[f"{attention}.query_key_value.bias"]
        if config["multi_query_attention"]:
            shared = config["multi_query_group_num"] * size
            q, k, v = (_heads(part, size) for part in packed.split((width, shared, shared), -1))
        else:
            q, k, v = (part.transpose(0, 1) for part in packed.view(len(ids), -1, 3 * size).chunk(3, -1))
        q, k = (_turn_neighbours(part, size // 2, base) for part in (q, k))
        x = x + _attend(q, k, v) @ w[f"{attention}.dense.weight"].T
        y = _norm(x, w[f"{layer}.post_attention_layernorm.weight"], eps)
        gate, up = (y @ w[f"{layer}.mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[f"{layer}.mlp.dense_4h_to_h.weight"].T
    x = _norm(x, w["transformer.encoder.final_layernorm.weight"], eps)
    return x @ w["transformer.output_layer.weight"].T


MODELS: dict[str, Callable[[], PlainModel]] = {
    "baichuan-7b": lambda: baichuan(num_heads=1, has_alibi=False, has_unit_rows=False),
    "baichuan-13b": lambda: baichuan(num_heads=3, has_alibi=True, has_unit_rows=False),
    "baichuan2-7b": lambda: baichuan(num_heads=3, has_alibi=False, has_unit_rows=True),
    "baichuan2-13b": lambda: baichuan(num_heads=4, has_alibi=True, has_unit_rows=True),
    "qwen-wide-heads": lambda: qwen(num_heads=2, head_dim=80, base=10000.0),
    "qwen-other-base": lambda: qwen(num_heads=3, head_dim=32, base=500000.0),
    "chatglm3-groups": lambda: chatglm(num_heads=4, num_groups=2, head_dim=80),
    "chatglm2-multi-query-long": lambda: chatglm(num_heads=3, num_groups=1, head_dim=96, ratio=8.0),
    "chatglm-no-groups": lambda: chatglm(num_heads=3, num_groups=None, head_dim=32),
}
