"""A whole model as one program: its forward runs once over tensors without memory, and each op records what it would do.

Ops whose activations lie on torch's `meta` device land in backend `graph`, which appends a Node instead of computing. The nodes
are then fused (fusion.py), given memory, lowered to the extension's instructions and run by its threads with one wake-up per
step, without Python in between. The kernels are those of the eager ops, so the bits are the same. What Python can do between
two ops is views; anything that computes raises NotCapturable, and the caller goes on op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quire.ops.capture import Forward, NotCapturable, StepTensors
from quire.ops.cpu.extension import allocate, extension

ALIGNMENT = 64
INPUT = "input"
"""Name of the node that stands for rows which the caller writes."""
_META = torch.device("meta")


@dataclass(frozen=True)
class Operand:
    """A matrix of one row per token inside a buffer; all three numbers in bytes but `buffer`, which numbers it."""

    buffer: int
    offset: int
    stride: int


@dataclass
class Node:
    """One kernel call. `build` makes the instruction once every operand has an address; `name` and `info` are for fusion."""

    name: str
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    build: Callable[[Callable[[Operand], int]], Any]
    info: dict[str, Any] = field(default_factory=dict)


class Recording:
    """What one pass over the model gave: nodes in order, and the row size of each buffer."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.layout = extension.BatchLayout()
        self.nodes: list[Node] = []
        self.row_bytes: list[int] = []
        self._buffer_of: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self.step = _step_without_memory(max_tokens)

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor [max_tokens, *shape] without memory, in a buffer of its own."""
        tensor = torch.empty((self.max_tokens, *shape), dtype=dtype, device=_META)
        self._alive.append(tensor)  # a storage that dies could give its identity to another
        self._buffer_of[tensor.untyped_storage()._cdata] = len(self.row_bytes)
        self.row_bytes.append(tensor.stride(0) * dtype.itemsize)
        return tensor

    def operand(self, tensor: Tensor) -> Operand:
        """Where a recorded tensor or a view of one lies. Raises NotCapturable for anything else."""
        buffer = self._buffer_of.get(tensor.untyped_storage()._cdata)
        if buffer is None:
            raise NotCapturable("an op reads a tensor that no op of the model made")
        inner = 1
        for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:])):
            if size != 1 and stride != inner:
                raise NotCapturable(f"an op reads a view with strides {tensor.stride()}")
            inner *= size
        if tensor.shape[0] != self.max_tokens:
            raise NotCapturable(f"an op reads {tensor.shape[0]} rows, not one per token")
        return Operand(buffer, int(tensor.storage_offset()) * tensor.itemsize, self.row_bytes[buffer])

    def emit(
        self,
        name: str,
        reads: tuple[Tensor, ...],
        writes: tuple[Tensor, ...],
        build: Callable[[Callable[[Operand], int]], Any],
        **info: Any,
    ) -> None:
        """Append a node over recorded tensors."""
        operands = tuple(self.operand(t) for t in reads), tuple(self.operand(t) for t in writes)
        self.nodes.append(Node(name, *operands, build, info))


_current: Recording | None = None


def recording() -> Recording:
    """The pass that is under way."""
    if _current is None:
        raise RuntimeError("an op was called on a meta tensor outside capture()")
    return _current


class Compiled:
    """A recording with its nodes fused, lowered, and given an arena that every run uses again."""

    def __init__(self, recording: Recording, result: Tensor) -> None:
        from quire.ops.cpu.fusion import fuse  # which builds on this module

        self._end = recording.operand(result)
        nodes = fuse(recording.nodes, keep=self._end)
        self._starts, num_bytes = plan_memory(nodes, recording, self._end)
        self._nodes = nodes  # their closures keep weights and tables alive, to which instructions hold bare addresses
        self._arena = allocate((num_bytes,), torch.uint8)
        instructions = [node.build(self._address) for node in nodes if node.name != INPUT]
        self.num_instructions = len(instructions)
        self.max_rows = recording.max_tokens
        self._program = extension.Program(instructions)
        self._result = self.view(recording, result)

    def view(self, recording: Recording, tensor: Tensor) -> Tensor:
        """The place of a recorded tensor [max_rows, width] in the arena."""
        operand = recording.operand(tensor)
        start = self._starts[operand.buffer]
        rows = self._arena[start : start + self.max_rows * operand.stride].view(tensor.dtype)
        first = operand.offset // tensor.itemsize
        return rows.view(self.max_rows, -1)[:, first : first + tensor[0].numel()]

    def _address(self, operand: Operand) -> int:
        return self._arena.data_ptr() + self._starts[operand.buffer] + operand.offset

    def ending_in_argmax(self, width: int, places: tuple[int, int]) -> Any | None:
        """The same program, with only the argmax of each result row in the end: at `places`, see `product_instruction`. None if
        the result is not the whole output of a product.
        """
        last = self._nodes[-1]
        build = last.info.get("build_argmax")
        if build is None or last.writes != (self._end,) or last.info["width"] != width:
            return None
        instructions = [node.build(self._address) for node in self._nodes[:-1] if node.name != INPUT]
        return extension.Program([*instructions, build(self._address, places)])

    def run(self, num_rows: int) -> Tensor:
        """Execute over the first rows; the result's rows, valid until the next run."""
        if num_rows > self.max_rows:
            raise ValueError(f"at most {self.max_rows} tokens were captured, got {num_rows}")
        self._program.run(num_rows)
        return self._result[:num_rows]


class CapturedForward:
    """See `ops.capture.Captured`."""

    def __init__(self, recording: Recording, result: Tensor) -> None:
        self._layout = recording.layout
        self._compiled = Compiled(recording, result)
        self.num_instructions = self._compiled.num_instructions

    def __call__(self, step: StepTensors) -> Tensor:
        num_tokens = len(step.token_ids)
        self._layout.set(
            num_tokens,
            len(step.seq_lens),
            step.block_tables.shape[1],
            step.token_ids.data_ptr(),
            step.positions.data_ptr(),
            step.slot_mapping.data_ptr(),
            step.block_tables.data_ptr(),
            step.query_start.data_ptr(),
            step.seq_lens.data_ptr(),
        )
        return self._compiled.run(num_tokens)


class CapturedRows:
    """See `ops.capture.RowProgram`."""

    def __init__(self, recording: Recording, source: Tensor, result: Tensor) -> None:
        self._compiled = Compiled(recording, result)
        self._source = self._compiled.view(recording, source)
        self._ids = torch.zeros(recording.max_tokens, dtype=torch.int64)
        self._values = torch.zeros(recording.max_tokens)
        places = self._ids.data_ptr(), self._values.data_ptr()
        self._argmax = self._compiled.ending_in_argmax(result.shape[1], places)

    def __call__(self, rows: Tensor) -> Tensor:
        self._source[: len(rows)].copy_(rows)
        return self._compiled.run(len(rows))

    def argmax(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        if self._argmax is None or len(rows) > self._compiled.max_rows:
            return None
        self._source[: len(rows)].copy_(rows)
        self._argmax.run(len(rows))
        return self._ids[: len(rows)], self._values[: len(rows)]


def _step_without_memory(max_tokens: int) -> StepTensors:
    """Stands for the inputs of every later step."""

    def make(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=_META)

    small = torch.int32
    tables = make(max_tokens, 1, dtype=small), make(max_tokens + 1, dtype=small), make(max_tokens, dtype=small)
    return StepTensors(make(max_tokens), make(max_tokens), make(max_tokens), *tables)


def capture(forward: Forward, max_tokens: int) -> CapturedForward:
    """See `ops.capture.capture`."""
    with _record(max_tokens) as pass_, _ViewsOnly():
        result = forward(pass_.step)
    return CapturedForward(pass_, result)


def capture_rows(function: Callable[[Tensor], Tensor], width: int, max_rows: int) -> CapturedRows:
    """See `ops.capture.capture_rows`."""
    with _record(max_rows) as pass_:
        source = pass_.new((width,), torch.float32)
        pass_.emit(INPUT, (), (source,), lambda at: None)
        with _ViewsOnly():
            result = function(source)
    return CapturedRows(pass_, source, result)


@contextmanager
def _record(max_tokens: int) -> Iterator[Recording]:
    global _current
    before, _current = _current, Recording(max_tokens)
    try:
        yield _current
    finally:
        _current = before


class _ViewsOnly(TorchDispatchMode):
    """Lets through what makes views of recorded tensors and refuses what would compute on them."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch's wrapper for that imports torch._dynamo, half of an engine's time to start."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        touches = any(isinstance(a, Tensor) and a.device == _META for a in args)
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if touches and not is_view and func is not torch.ops.aten.detach.default:
            raise NotCapturable(f"torch computes {func} between two ops")
        return result


def plan_memory(nodes: list[Node], recording: Recording, result: Operand) -> tuple[list[int], int]:
    """Where each buffer starts in one arena, and the arena's size: buffers whose lives do not overlap share memory."""
    last_use = {result.buffer: len(nodes)}
    for index, node in enumerate(nodes):
        for operand in (*node.reads, *node.writes):
            last_use[operand.buffer] = max(index, last_use.get(operand.buffer, 0))
    starts = [0] * len(recording.row_bytes)
    live: list[tuple[int, int, int]] = []  # start, end, last use
    placed: set[int] = set()
    size = 0
    for index, node in enumerate(nodes):
        live = [block for block in live if block[2] >= index]
        for operand in node.writes:
            if operand.buffer in placed:
                continue
            placed.add(operand.buffer)
            num_bytes = _round_up(recording.row_bytes[operand.buffer] * recording.max_tokens, ALIGNMENT)
            start = _first_gap(sorted(live), num_bytes)
            starts[operand.buffer] = start
            live.append((start, start + num_bytes, last_use[operand.buffer]))
            size = max(size, start + num_bytes)
    return starts, size


def _first_gap(live: list[tuple[int, int, int]], num_bytes: int) -> int:
    start = 0
    for begin, end, _ in live:
        if begin - start >= num_bytes:
            break
        start = max(start, end)
    return start


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
