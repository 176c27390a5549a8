"""A model's forward as one program of kernels: what a caller needs, whatever backend can do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowRun:
    """Vectors [n, hidden_size], dense, that stand in place of the embeddings of n tokens of a step, from token `first` on."""

    first: int
    vectors: Tensor


@dataclass(frozen=True)
class StepTensors:
    """One step of T tokens and R requests; see `quire.ops.paged_attention`. int64: the first three, int32: the rest; dense."""

    token_ids: Tensor
    """[T]"""
    positions: Tensor
    """[T]"""
    slot_mapping: Tensor
    """[T]: where each token's key and value go."""
    block_tables: Tensor
    """[R, max_blocks]"""
    query_start: Tensor
    """[R + 1]"""
    seq_lens: Tensor
    """[R]"""
    replaced: Sequence[RowRun] = ()
    """See `quire.ops.replace_rows`."""


@dataclass(frozen=True)
class Tables:
    """What is known of all live requests, one row each, int32 in host memory. Growing makes a new one."""

    tokens: Tensor
    """[., .]: token ids by position."""
    blocks: Tensor
    """[., .]: block tables."""
    block_size: int


@dataclass(slots=True)
class Step:
    """One step as slices of `tables`: request i computes counts[i] tokens from position first[i] on, and has row rows[i]."""

    tables: Tables
    rows: list[int]
    first: list[int]
    counts: list[int]
    replaced: Sequence[RowRun] = ()
    """Tokens of the step whose embedding is given, not looked up: those of images."""


Forward = Callable[[StepTensors], Tensor]
"""A step's tokens to hidden states [T, hidden_size]."""


class NotCapturable(Exception):
    """The model does something between two ops that a program cannot repeat; the message says what."""


class Captured(Protocol):
    """A captured forward."""

    num_instructions: int

    def __call__(self, step: StepTensors) -> Tensor:
        """hidden [T, hidden_size], valid until the next call."""


def capture(forward: Forward, max_tokens: int, device: torch.device) -> Captured | None:
    """`forward` as a program over at most `max_tokens` tokens, or None where no backend on `device` makes programs.

    Raises NotCapturable when `forward` does more than ops and views.
    """
    if not _makes_programs(device):
        return None
    from quire.ops.cpu.graph import capture as record

    return record(forward, max_tokens)


RowFunction = Callable[[Tensor], Tensor]
"""Rows [N, width] in float32 to rows [N, other width]."""


class CapturedModel(Protocol):
    """A forward and the output head behind it. A step is one crossing into the backend, whatever it gives."""

    def run(self, step: Step) -> None:
        """Hidden states only."""

    def logits(self, step: Step, chosen: list[int]) -> Tensor:
        """Run the step and the head on rows `chosen` of its tokens: [len(chosen), vocab], valid until the next call."""

    def greedy_tokens(self, step: Step, chosen: list[int]) -> list[int] | None:
        """Run the step; the argmax of those logits, which are never written. None where it takes the logits to tell."""

    def hidden(self, first: int, stop: int) -> Tensor:
        """Rows [first, stop) of the latest step's hidden states, valid until the next."""

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [N, width] -> [N, vocab], valid until the next call."""


def capture_model(
    forward: Forward, head: RowFunction, width: int, max_tokens: int, max_rows: int, device: torch.device
) -> CapturedModel | None:
    """`forward` of at most `max_tokens` tokens and `head` behind it as programs, or None as `capture`.

    The head's rows of `width` numbers are a program for up to `max_rows` rows. Raises NotCapturable as `capture` does.
    """
    if not _makes_programs(device):
        return None
    from quire.ops.cpu.graph import capture_model as record

    return record(forward, head, width, max_tokens, max_rows)


def _makes_programs(device: torch.device) -> bool:
    from quire.ops import cpu

    return device.type == "cpu" and cpu.load()[0] is not None
