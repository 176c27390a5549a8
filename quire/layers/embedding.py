"""Token embedding and output head, split over the vocabulary."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from quire import ops, parallel
from quire.layers.linear import copy_rows
from quire.quant import add_parameter


class VocabEmbedding(nn.Module):
    """weight [vocab_size, hidden_size]; each rank holds a run of rows, the last one padded."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.share = -(-vocab_size // parallel.tensor_size())
        self.first = parallel.tensor_rank() * self.share
        add_parameter(self, "weight", (self.share, hidden_size), self.load_weight)

    def load_weight(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        """Copy this rank's rows; rows past the vocabulary are zero."""
        if tuple(tensor.shape) != (self.vocab_size, parameter.shape[1]):
            expected = [self.vocab_size, parameter.shape[1]]
            raise ValueError(f"shape {list(tensor.shape)}, but the architecture needs {expected}")
        rows = min(self.share, self.vocab_size - self.first)
        copy_rows(parameter.narrow(0, 0, rows), tensor.narrow(0, self.first, rows), 0, 1)
        parameter.narrow(0, rows, self.share - rows).zero_()

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] -> [T, hidden_size]."""
        if parallel.tensor_size() == 1:
            return ops.embedding(token_ids, self.weight)
        local = token_ids - self.first
        mine = (local >= 0) & (local < self.share)
        rows = ops.embedding(torch.where(mine, local, 0), self.weight)
        return parallel.all_reduce(rows * mine.unsqueeze(-1))


class LMHead(VocabEmbedding):
    """Hidden states to logits with weight [vocab_size, hidden_size], or with a tied embedding's weight."""

    def __init__(self, vocab_size: int, hidden_size: int, tied_to: VocabEmbedding | None = None) -> None:
        if tied_to is None:
            super().__init__(vocab_size, hidden_size)
            return
        nn.Module.__init__(self)
        self.vocab_size = vocab_size
        self.weight = tied_to.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, hidden_size] -> logits [T, vocab_size] on every rank."""
        return parallel.all_gather(ops.linear(hidden, self.weight))[:, : self.vocab_size]
