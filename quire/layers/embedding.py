"""Token embedding and output head, split over the vocabulary; and learned positions."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional

from quire import parallel
from quire.quant import Quantizable, Slot, WeightShard, share_of


class _Vocabulary(Quantizable):
    """weight [vocab_size, hidden_size]; each rank holds a run of rows, the last one padded with zeros."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        self.vocab_size = vocab_size
        self.share = -(-vocab_size // parallel.tensor_size())
        self.first = parallel.tensor_rank() * self.share
        super().__init__(WeightShard(hidden_size, self.share, self.place, is_embedding=True))

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's rows of the vocabulary."""
        expected = [self.vocab_size, shape[1]]
        if list(tensor.shape) != expected:
            raise ValueError(f"shape {list(tensor.shape)}, but the architecture needs {expected}")
        return 0, tensor.narrow(0, self.first, min(self.share, self.vocab_size - self.first))

    def logits(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """hidden [T, hidden_size] -> [T, vocab_size] on every rank."""
        return parallel.all_gather(self.quant.apply(self, hidden, bias))[:, : self.vocab_size]


class VocabEmbedding(_Vocabulary):
    """Token ids to vectors."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] -> [T, hidden_size]."""
        if parallel.tensor_size() == 1:
            return self.quant.embed(self, token_ids)
        local = token_ids - self.first
        mine = (local >= 0) & (local < self.share)
        rows = self.quant.embed(self, torch.where(mine, local, 0))
        return parallel.all_reduce(rows * mine.unsqueeze(-1))


class PositionEmbedding(Quantizable):
    """Positions to vectors that were learned; the same on every rank. `offset`: rows of the checkpoint before position 0."""

    def __init__(self, max_position: int, hidden_size: int, offset: int = 0) -> None:
        self.offset = offset
        super().__init__(WeightShard(hidden_size, max_position, self.place, is_embedding=True, is_exact=True))

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """The rows from position 0 on."""
        rows = share_of(tensor, (shape[0] + self.offset, shape[1]), 0, 0, 1)
        return 0, rows[self.offset :]

    def forward(self, positions: Tensor) -> Tensor:
        """positions [T] -> [T, hidden_size]."""
        return self.quant.embed(self, positions)


class LMHead(_Vocabulary):
    """Hidden states to logits. With `unit_rows` each row of the weight is divided by its length when it is loaded."""

    def __init__(
        self, vocab_size: int, hidden_size: int, bias: bool = False, unit_rows: bool = False
    ) -> None:
        self.unit_rows = unit_rows
        super().__init__(vocab_size, hidden_size)
        if bias:
            self.slots["bias"] = Slot((self.share,), self.place_bias)
        else:
            self.bias = None

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's rows of the vocabulary."""
        first, rows = super().place(shape, tensor, part_id)
        if self.unit_rows and not rows.is_floating_point():
            raise ValueError("a quantized form, but the rows of this output head are scaled when they are loaded")
        return first, functional.normalize(rows.float()).to(rows.dtype) if self.unit_rows else rows

    def place_bias(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's part of the bias."""
        rows = share_of(tensor, (self.vocab_size,), 0, 0, 1)
        return 0, rows.narrow(0, self.first, min(self.share, self.vocab_size - self.first))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, hidden_size] -> logits [T, vocab_size] on every rank."""
        return self.logits(hidden, self.bias)


class TiedLMHead(nn.Module):
    """Hidden states to logits with the embedding's own weight."""

    def __init__(self, embedding: VocabEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, hidden_size] -> logits [T, vocab_size] on every rank."""
        return self.embedding.logits(hidden)
