"""RoBERTa (1907.11692) and XLM-RoBERTa (1911.02116): BERT with positions that begin behind the padding token's, and a classifier
of another form.
"""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.hf import num_labels
from quire.config.types import HFConfig
from quire.layers import ColumnLinear, soft_cap
from quire.models.bert import BertModel


class RobertaModel(BertModel):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; there are no logits."""

    prefix = "roberta."
    unused = ("pooler.", "lm_head.")

    def __init__(self, config: HFConfig) -> None:
        padding = config.fields.get("pad_token_id")
        super().__init__(config, offset=(1 if padding is None else int(padding)) + 1)


class RobertaClassificationHead(nn.Module):
    """Two layers over the first token."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.dense = ColumnLinear(config.hidden_size, config.hidden_size, bias=True)
        self.out_proj = ColumnLinear(config.hidden_size, num_labels(config), bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out_proj(soft_cap(self.dense(hidden), 1.0))  # tanh


class RobertaForSequenceClassification(RobertaModel):
    """As RobertaModel; its logits are those of a text's classes."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__(config)
        self.classifier = RobertaClassificationHead(config)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] of first tokens -> [N, labels]."""
        return self.classifier(hidden)
