"""Small encoders with random weights, two awkward shapes or more per architecture, and transformers' own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 199
_BODY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "max_position_embeddings": 160,
    "initializer_range": 0.15,
}
_WIDE = _BODY | {"hidden_size": 160, "num_attention_heads": 2}
_DISTIL = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 160, "initializer_range": 0.15, "n_layers": 3}

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-heads-of-24": ("BertModel", _BODY | {"num_attention_heads": 4}),
    "bert-heads-of-80-tanh-gelu": ("BertForMaskedLM", _WIDE | {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "bert-classifier": ("BertForSequenceClassification", _BODY | {"num_attention_heads": 3, "num_labels": 5}),
    "roberta": ("RobertaModel", _BODY | {"num_attention_heads": 4, "type_vocab_size": 1}),
    "roberta-masked-padding-at-3": ("RobertaForMaskedLM", _WIDE | {"pad_token_id": 3, "type_vocab_size": 1}),
    "roberta-classifier": ("RobertaForSequenceClassification", _BODY | {"num_attention_heads": 4, "num_labels": 1}),
    "xlm-roberta": ("XLMRobertaModel", _WIDE | {"type_vocab_size": 1}),
    "xlm-roberta-masked": ("XLMRobertaForMaskedLM", _BODY | {"num_attention_heads": 3, "type_vocab_size": 1}),
    "xlm-roberta-classifier": (
        "XLMRobertaForSequenceClassification",
        _BODY | {"num_attention_heads": 4, "num_labels": 2, "type_vocab_size": 1},
    ),
    "distilbert": ("DistilBertModel", _DISTIL | {"dim": 96, "n_heads": 4, "hidden_dim": 172}),
    "distilbert-masked": ("DistilBertForMaskedLM", _DISTIL | {"dim": 160, "n_heads": 2, "hidden_dim": 100, "activation": "relu"}),
}
"""Class names in transformers and configuration values."""

LONGEST = 150


def make_encoder(shape: str) -> Any:
    """A transformers model with random weights (norms and biases too), the same every time."""
    import transformers

    name, values = ENCODERS[shape]
    model_class = getattr(transformers, name)
    config = model_class.config_class(**values)
    config._attn_implementation = "eager"
    torch.manual_seed(sum(shape.encode()))
    model = model_class(config).eval()
    randomize(model)
    return model


def randomize(model: torch.nn.Module) -> None:
    """Give norms and biases weights that matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)


def save(model: Any, path: Path) -> Path:
    """Write the model in Hugging Face format."""
    model.save_pretrained(path)
    return path


@torch.inference_mode()
def hidden_states(model: Any, token_ids: list[int]) -> torch.Tensor:
    """What transformers computes for one text: [tokens, hidden_size]."""
    body = getattr(model, model.base_model_prefix, model)
    return body(torch.tensor([token_ids])).last_hidden_state[0]


def pooled(states: torch.Tensor, kind: str, normalize: bool = True) -> list[float]:
    """The vector that these hidden states stand for, by sentence-transformers' definitions."""
    vector = {"cls": states[0], "last": states[-1], "mean": states.mean(0)}[kind]
    return (torch.nn.functional.normalize(vector, dim=0) if normalize else vector).tolist()


def draw_texts(lengths: tuple[int, ...], seed: int = 3) -> list[list[int]]:
    """Token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]
