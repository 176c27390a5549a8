"""Which layers of a Qwen mixture have experts and which a plain feed-forward block."""

from __future__ import annotations

from quire.config.fields import Fields


def is_sparse_layer(fields: Fields, layer_index: int) -> bool:
    """Every `decoder_sparse_step`th layer has experts, but for those in `mlp_only_layers`."""
    plain = fields.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(isinstance(layer, int) for layer in plain):
        raise fields.wrong("mlp_only_layers", "a list of layers' numbers", plain)
    step = fields.positive("decoder_sparse_step", default=1)
    return layer_index not in plain and (layer_index + 1) % step == 0
