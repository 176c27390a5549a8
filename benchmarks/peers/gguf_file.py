"""Hugging Face checkpoint (Llama or Qwen2, byte-level BPE) to GGUF, quantized or not. The one file that imports gguf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
_TYPES = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
_FILE_TYPES = {
    "float32": "ALL_F32",
    "bfloat16": "MOSTLY_BF16",
    "int8": "MOSTLY_Q8_0",
    "int4": "MOSTLY_Q4_0",
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(checkpoint: Path, target: Path, precision: str) -> None:
    """Write the checkpoint's weights in `precision`; with int4 the embedding and the head are int8."""
    gguf = _import_gguf()
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = _ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_name(checkpoint.name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[precision]])
    _add_sizes(writer, config)
    _add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text()), config)
    for name, tensor in _tensors(checkpoint, config, architecture):
        kind = gguf.GGMLQuantizationType[_type_of(name, tensor, precision)]
        data = tensor if kind == gguf.GGMLQuantizationType.F32 else gguf.quantize(tensor, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """What GGUF calls a tensor of the checkpoint."""
    module, _, leaf = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{leaf}"
    _, _, layer, inside = module.split(".", 3)
    return f"blk.{layer}.{_INSIDE[inside]}.{leaf}"


def interleave_halves(tensor: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key projection from rotary halves (i, i + d/2) to rotary pairs (2i, 2i + 1), per head."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("writing GGUF files needs the gguf package: pip install 'quire[bench]'") from None
    return gguf


def _type_of(name: str, tensor: np.ndarray, precision: str) -> str:
    if tensor.ndim == 1:
        return "F32"
    if precision == "int4" and name in ("token_embd.weight", "output.weight"):
        return "Q8_0"
    return _TYPES[precision]


def _add_sizes(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    gguf = _import_gguf()
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for added in tokenizer["added_tokens"]:
        types[added["id"]] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _tensors(checkpoint: Path, config: dict[str, Any], architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF name and float32 values of every weight; Llama's queries and keys in GGUF's order of rows."""
    from safetensors import safe_open

    num_heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_tensor(name).float().numpy()
                projection = name.split(".")[-2]
                if architecture == "llama" and projection in num_heads:
                    tensor = interleave_halves(tensor, num_heads[projection])
                yield gguf_name(name), tensor
