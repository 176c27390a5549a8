"""Documents -> rows of token ids and labels: whole documents packed into rows of one length, none cut."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tools.folio.documents import END_OF_TEXT, Document, render

IGNORED = -100
LOOKAHEAD = 32


class Encoded(NamedTuple):
    """Token ids of a document and, for each, whether the loss counts it."""

    ids: list[int]
    learn: list[bool]


class Batch(NamedTuple):
    """inputs, labels and the number of the document, all [rows, length]; a label of IGNORED does not count."""

    inputs: Tensor
    labels: Tensor
    document: Tensor

    def mask(self) -> Tensor:
        """[rows, 1, length, length]: 0 where a token may look (back, in its own document), else -inf."""
        length = self.inputs.shape[1]
        own = self.document[:, :, None] == self.document[:, None, :]
        allowed = own & torch.ones(length, length, dtype=torch.bool).tril()
        return torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))[:, None]


def encode(tokenizer: Tokenizer, document: Document) -> Encoded:
    ids: list[int] = []
    learn: list[bool] = []
    for segment in render(document):
        piece = tokenizer.encode(segment.text).ids
        ids += piece
        learn += [segment.learn] * len(piece)
    return Encoded(ids, learn)


class Packer:
    """Fills rows from a stream, looking a few documents ahead for one that still fits."""

    def __init__(self, documents: Iterator[Document], tokenizer: Tokenizer):
        self.documents, self.tokenizer = documents, tokenizer
        self.pad_id = tokenizer.token_to_id(END_OF_TEXT)
        self.waiting: list[Encoded] = []

    def _take(self, room: int) -> Encoded | None:
        while len(self.waiting) < LOOKAHEAD:
            self.waiting.append(encode(self.tokenizer, next(self.documents)))
        for i, encoded in enumerate(self.waiting):
            if len(encoded.ids) <= room:
                return self.waiting.pop(i)
        return None

    def row(self, length: int) -> tuple[list[int], list[int], list[int]]:
        """`length + 1` ids, labels that are IGNORED where the loss does not count, and document numbers."""
        self.waiting = [encoded for encoded in self.waiting if len(encoded.ids) <= length + 1]
        ids: list[int] = []
        labels: list[int] = []
        document: list[int] = []
        while found := self._take(length + 1 - len(ids)):
            ids += found.ids
            labels += [i if learn else IGNORED for i, learn in zip(found.ids, found.learn, strict=True)]
            document += [len(ids)] * len(found.ids)
        missing = length + 1 - len(ids)
        return ids + [self.pad_id] * missing, labels + [IGNORED] * missing, document + [0] * missing

    def batch(self, num_rows: int, length: int) -> Batch:
        rows = [self.row(length) for _ in range(num_rows)]
        ids, labels, document = (torch.tensor(part) for part in zip(*rows, strict=True))
        return Batch(ids[:, :-1], labels[:, 1:].contiguous(), document[:, :-1])
