"""DeepSeek-V3 and R1 (2412.19437): DeepSeek-V2 with experts that are chosen without an auxiliary loss."""

from __future__ import annotations

from functools import partial

from quire.config.types import HFConfig
from quire.layers import Routing
from quire.models.deepseek_v2 import DeepseekMoE, DeepseekV2ForCausalLM


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request.

    A checkpoint's layers behind the last one predict further tokens (multi-token prediction) and are passed over.
    """

    def __init__(self, config: HFConfig) -> None:
        super().__init__(config)
        self.rename = partial(_without_predictors, config.num_hidden_layers)

    @staticmethod
    def make_moe(config: HFConfig) -> DeepseekMoE:
        """Sigmoid scores, which a bias corrects in the choice alone; groups by the sum of their two best."""
        fields = config.fields
        routing = Routing(
            fields.positive("n_routed_experts"),
            fields.positive("num_experts_per_tok"),
            "sigmoid",
            renormalized=fields.flag("norm_topk_prob", True),
            scale=fields.number("routed_scaling_factor", default=1.0),
            num_groups=fields.positive("n_group", default=1),
            top_groups=fields.positive("topk_group", default=1),
            group_score="sum_of_top_2",
        )
        return DeepseekMoE(config, routing, correction_bias=True)


def _without_predictors(num_layers: int, name: str) -> str | None:
    words = name.split(".")
    is_predictor = words[:2] == ["model", "layers"] and int(words[2]) >= num_layers
    return None if is_predictor else name
