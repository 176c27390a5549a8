"""Token embedding and output head, split over the vocabulary; and learned positions."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional

from quire import ops, parallel
from quire.layers.context import current_context
from quire.ops.weights import PackedWeight, WeightFormat
from quire.quant import Loadable, Quantizable, Slot, WeightShard, share_of


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
    """Token ids to vectors. With `reads_images` the tokens of images get the vectors that the forward context gives them."""

    reads_images = False

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] -> [T, hidden_size]."""
        rows = self._look_up(token_ids)
        return ops.replace_rows(rows, current_context().replaced) if self.reads_images else rows

    def _look_up(self, token_ids: Tensor) -> Tensor:
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


class SegmentPositions(Loadable):
    """Positions to learned vectors, with the vector of the token's segment added to each: what BERT adds to the words.

    The segment is 0, except for tokens whose rows the forward context gives: those of the second text of a pair, out of `second`.
    Parts "position" and "segment" of the weight; `offset`: rows of the checkpoint before position 0. Never quantized.
    """

    weight: Tensor | PackedWeight
    second: Tensor | None
    """[num_positions, hidden_size], dense: the same positions in segment 1; None: the model has one segment."""

    def __init__(self, num_positions: int, hidden_size: int, num_segments: int, offset: int = 0) -> None:
        super().__init__()
        self.num_positions, self.num_segments, self.offset = num_positions, num_segments, offset
        self.register_buffer("second", None, persistent=False)
        self._num_kept = min(2, num_segments)
        self.slots["weight"] = Slot((num_positions + self._num_kept, hidden_size), self.place, ("position", "segment"))

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """The rows from position 0 on, and segments 0 and 1 behind them."""
        if part_id == "segment":
            return self.num_positions, share_of(tensor, (self.num_segments, shape[1]), 0, 0, 1)[: self._num_kept]
        return 0, share_of(tensor, (self.num_positions + self.offset, shape[1]), 0, 0, 1)[self.offset :]

    def after_load(self) -> None:
        """Add each segment to every position."""
        rows = self.slots.pop("weight").tensor
        positions, segments = rows[: self.num_positions], rows[self.num_positions :]
        table = positions + segments[0]
        if len(segments) > 1:
            self.register_buffer("second", positions + segments[1], persistent=False)
        if table.device.type == "cpu":
            self.weight = ops.pack_weight(table, WeightFormat("float32"))
        else:
            self.register_buffer("weight", table, persistent=False)
        super().after_load()

    def forward(self, positions: Tensor) -> Tensor:
        """positions [T] -> [T, hidden_size]."""
        rows = ops.embedding(positions, self.weight)
        return rows if self.second is None else ops.replace_rows(rows, current_context().replaced)


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
