"""Writes a trained checkpoint as a Hugging Face folder: `python -m tools.folio.export --name folio`."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tools.folio.documents import END_OF_TEXT, IM_END, SPECIAL_TOKENS
from tools.folio.model import SHAPES, LlamaShape, SmallLlama
from tools.folio.train import WORK, load_model, load_tokenizer

BUILTIN = Path("quire/builtin")
EOS_IDS = [SPECIAL_TOKENS.index(IM_END), SPECIAL_TOKENS.index(END_OF_TEXT)]


def config(shape: LlamaShape) -> dict:
    """config.json with `rope_theta` and `torch_dtype` for older readers beside what transformers 5 writes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
        "dtype": "bfloat16",
        "eos_token_id": EOS_IDS,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pad_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
        "pretraining_tp": 1,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def generation_config() -> dict:
    return {
        "bos_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
        "eos_token_id": EOS_IDS,
        "pad_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
    }


def hugging_face_weights(model: SmallLlama) -> dict[str, Tensor]:
    """Fused projections split into the checkpoint's own names, all in bfloat16."""
    s = model.shape
    q, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
    weights = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.final_norm * s.logit_scale,
    }
    for i, block in enumerate(model.blocks):
        prefix = f"model.layers.{i}."
        names = ("q_proj", "k_proj", "v_proj")
        for name, part in zip(names, block.qkv.weight.split((q, kv, kv)), strict=True):
            weights[f"{prefix}self_attn.{name}.weight"] = part
        for name, part in zip(("gate_proj", "up_proj"), block.gate_up.weight.chunk(2), strict=True):
            weights[f"{prefix}mlp.{name}.weight"] = part
        weights[f"{prefix}self_attn.o_proj.weight"] = block.o.weight
        weights[f"{prefix}mlp.down_proj.weight"] = block.down.weight
        weights[f"{prefix}input_layernorm.weight"] = block.input_norm
        weights[f"{prefix}post_attention_layernorm.weight"] = block.mlp_norm
    return {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in weights.items()}


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(name: str, folder: Path) -> None:
    """Everything but README.md, which is written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    model = load_model(WORK / name / "checkpoint.pt")
    weights = folder / "model.safetensors"
    save_file(hugging_face_weights(model), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    write_json(folder / "config.json", config(SHAPES[name]))
    write_json(folder / "generation_config.json", generation_config())
    load_tokenizer()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WORK / "tokenizer" / file, folder / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=sorted(SHAPES), default="folio")
    parser.add_argument("--to", type=Path, help="where to write; the package's folder by default")
    args = parser.parse_args()
    export(args.name, args.to or BUILTIN / args.name)


if __name__ == "__main__":
    main()
