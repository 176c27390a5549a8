"""A whole model as one program: its forward runs once over tensors without memory, and each op records what it would do.

Ops whose activations lie on torch's `meta` device land in backend `graph`, which appends a Node instead of computing. The nodes
are then fused (fusion.py), given memory, lowered to the extension's instructions and run by its threads with one wake-up per
step, without Python in between. The kernels are those of the eager ops, so the bits are the same. What Python can do between
two ops is views, sums of two tensors and products with a number, whose bits are no kernel's choice; anything else that computes
raises NotCapturable, and the caller goes on op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quire.ops.capture import Forward, NotCapturable, RowFunction, RowRun, Step, StepTensors, Tables
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
        self.layout = extension.StepLayout()
        self.replaced = extension.RowRuns()
        self.replaced_width = 0
        """Of the rows that runs of a step replace; 0: the model has none such."""
        self.nodes: list[Node] = []
        self.row_bytes: list[int] = []
        self._buffer_of: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self.encoded: dict[Any, tuple[Tensor, ...]] = {}
        """Rows as some weights want them, by where they lie and what the weights want: no op changes a row that is written."""
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
        self._arena = allocate((num_bytes,), torch.uint8, huge_pages=True)
        self.instructions = [node.build(self.address) for node in nodes if node.name != INPUT]
        self.max_rows = recording.max_tokens
        self._program = extension.Program(self.instructions)
        self.result = self.view(recording, result)
        """[max_rows, width]; its rows are valid until the next run."""

    def view(self, recording: Recording, tensor: Tensor) -> Tensor:
        """The place of a recorded tensor [max_rows, width] in the arena."""
        operand = recording.operand(tensor)
        start = self._starts[operand.buffer]
        rows = self._arena[start : start + self.max_rows * operand.stride].view(tensor.dtype)
        first = operand.offset // tensor.itemsize
        return rows.view(self.max_rows, -1)[:, first : first + tensor[0].numel()]

    def address(self, operand: Operand) -> int:
        return self._arena.data_ptr() + self._starts[operand.buffer] + operand.offset

    def ending_in_argmax(self, places: tuple[int, int]) -> list[Any] | None:
        """The same instructions, with only the argmax of each result row in the end: at `places`, see `product_instruction`. None
        if the result is not the whole output of a product.
        """
        last = self._nodes[-1]
        build = last.info.get("build_argmax")
        if build is None or last.writes != (self._end,) or last.info["width"] != self.result.shape[1]:
            return None
        return [*self.instructions[:-1], build(self.address, places)]

    def check(self, num_rows: int) -> None:
        """Raises ValueError for more rows than there is memory for."""
        if num_rows > self.max_rows:
            raise ValueError(f"at most {self.max_rows} tokens were captured, got {num_rows}")

    def run(self, num_rows: int) -> None:
        """Execute over the first rows."""
        self.check(num_rows)
        self._program.run(num_rows)


class CapturedForward:
    """See `ops.capture.Captured`."""

    def __init__(self, recording: Recording, result: Tensor) -> None:
        self.layout = recording.layout
        self._replaced, self._replaced_width = recording.replaced, recording.replaced_width
        self.compiled = Compiled(recording, result)
        self.num_instructions = len(self.compiled.instructions)

    def __call__(self, step: StepTensors) -> Tensor:
        num_tokens = len(step.token_ids)
        self.layout.set(
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
        self.replace(step.replaced)
        self.compiled.run(num_tokens)
        return self.compiled.result[:num_tokens]

    def replace(self, runs: Sequence[RowRun]) -> None:
        """The runs of the next step; their vectors must live until it has run. Raises ValueError for vectors of another form."""
        if not self._replaced_width:
            if runs:
                raise ValueError("runs of rows were given to a model that replaces none")
            return
        self._replaced.clear()
        for run in runs:
            vectors = run.vectors
            if vectors.shape[1] != self._replaced_width or vectors.dtype != torch.float32 or not vectors.is_contiguous():
                raise ValueError(
                    f"vectors must be dense float32 [n, {self._replaced_width}], got {list(vectors.shape)} {vectors.dtype}"
                )
            self._replaced.add(run.first, vectors.data_ptr(), len(vectors))


class CapturedRows:
    """A captured function of rows, whose result lies in the same memory every time: new memory would have to be cleared."""

    def __init__(self, recording: Recording, source: Tensor, result: Tensor) -> None:
        self.compiled = Compiled(recording, result)
        self.source = self.compiled.view(recording, source)
        """[max_rows, width]: where the program reads its rows."""
        self.ids = torch.zeros(recording.max_tokens, dtype=torch.int64)
        self.values = torch.zeros(recording.max_tokens)
        """What `argmax` finds. A value is not finite if any number of its row is not."""
        self.argmax = self.compiled.ending_in_argmax((self.ids.data_ptr(), self.values.data_ptr()))
        """The instructions that end in `ids` and `values` instead of the rows; None where there are none."""

    def __call__(self, rows: Tensor) -> Tensor:
        """function(rows), valid until the next call."""
        self.source[: len(rows)].copy_(rows)
        self.compiled.run(len(rows))
        return self.compiled.result[: len(rows)]


class CapturedModel:
    """See `ops.capture.CapturedModel`.

    Between the kernels of two steps nothing of torch runs: a step has just moved all weights through the caches, and every
    page of code or data that is touched then comes from memory.
    """

    def __init__(self, forward: CapturedForward, rows: CapturedRows, head: RowFunction) -> None:
        self._forward, self._rows, self._compute_head = forward, rows, head
        hidden, source = forward.compiled.result, rows.source
        self._pick = extension.PickRows(
            hidden.data_ptr(), hidden.stride(0), source.data_ptr(), source.stride(0), source.shape[1]
        )
        self._to_logits = self._program(rows.compiled.instructions)
        self._to_argmax = None
        if rows.argmax is not None:
            self._to_argmax = self._program(rows.argmax)
        self._found_at = rows.ids.data_ptr(), rows.values.data_ptr()
        self._tables: Tables | None = None
        self._table_view: Any = None

    def run(self, step: Step) -> None:
        self._forward.compiled.run(self._take(step))

    def logits(self, step: Step, chosen: list[int]) -> Tensor:
        if len(chosen) > self._rows.compiled.max_rows:
            self.run(step)
            return self._compute_head(self._forward.compiled.result[chosen])
        num_tokens = self._take(step)
        self._pick.choose(chosen)
        self._to_logits.run(num_tokens, len(chosen))
        return self._rows.compiled.result[: len(chosen)]

    def greedy_tokens(self, step: Step, chosen: list[int]) -> list[int] | None:
        if self._to_argmax is None or len(chosen) > self._rows.compiled.max_rows:
            return None
        num_tokens = self._take(step)
        self._pick.choose(chosen)
        self._to_argmax.run(num_tokens, len(chosen))
        return extension.ids_if_finite(*self._found_at, len(chosen))

    def hidden(self, first: int, stop: int) -> Tensor:
        return self._forward.compiled.result[first:stop]

    def head(self, hidden: Tensor) -> Tensor:
        return self._rows(hidden) if len(hidden) <= self._rows.compiled.max_rows else self._compute_head(hidden)

    def _program(self, tail: list[Any]) -> Any:
        return extension.Program(self._forward.compiled.instructions, [self._pick, *tail])

    def _take(self, step: Step) -> int:
        """Make the step the one that runs next; its number of tokens."""
        tables, num_tokens = step.tables, sum(step.counts)
        self._forward.compiled.check(num_tokens)
        if tables is not self._tables:
            tokens, blocks = tables.tokens, tables.blocks
            self._tables = tables
            self._table_view = extension.RequestTables(
                tokens.data_ptr(), tokens.stride(0), blocks.data_ptr(), blocks.stride(0), tables.block_size
            )
        self._forward.layout.fill(self._table_view, step.rows, step.first, step.counts)
        self._forward.replace(step.replaced)
        return num_tokens


def _step_without_memory(max_tokens: int) -> StepTensors:
    """Stands for the inputs of every later step."""

    def make(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=_META)

    small = torch.int32
    tables = make(max_tokens, 1, dtype=small), make(max_tokens + 1, dtype=small), make(max_tokens, dtype=small)
    runs: list[RowRun] = []
    return StepTensors(make(max_tokens), make(max_tokens), make(max_tokens), *tables, replaced=runs)


def capture(forward: Forward, max_tokens: int) -> CapturedForward:
    """See `ops.capture.capture`."""
    with _record(max_tokens) as pass_, _ViewsAndSums():
        result = forward(pass_.step)
    return CapturedForward(pass_, result)


def capture_rows(function: Callable[[Tensor], Tensor], width: int, max_rows: int) -> CapturedRows:
    """`function` as a program over at most `max_rows` rows of `width` float32 numbers. Raises NotCapturable."""
    with _record(max_rows) as pass_:
        source = pass_.new((width,), torch.float32)
        pass_.emit(INPUT, (), (source,), lambda at: None)
        with _ViewsAndSums():
            result = function(source)
    return CapturedRows(pass_, source, result)


def capture_model(
    forward: Forward, head: RowFunction, width: int, max_tokens: int, max_rows: int
) -> CapturedModel:
    """See `ops.capture.capture_model`."""
    return CapturedModel(capture(forward, max_tokens), capture_rows(head, width, max_rows), head)


@contextmanager
def _record(max_tokens: int) -> Iterator[Recording]:
    global _current
    before, _current = _current, Recording(max_tokens)
    try:
        yield _current
    finally:
        _current = before


class _ViewsAndSums(TorchDispatchMode):
    """Lets through what makes views of recorded tensors, records `x + y` and `x * number`, and refuses what else computes."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's hook. Its answer "yes" wraps the method below in torch._dynamo: 800 modules, 75 MB and a second of start-up."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        touches = any(isinstance(a, Tensor) and a.device == _META for a in args)
        if touches and not kwargs and func in (torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor):
            return _record_arithmetic(func, *args)
        result = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if touches and not is_view and func is not torch.ops.aten.detach.default:
            raise NotCapturable(f"torch computes {func} between two ops")
        return result


def _record_arithmetic(func: Any, x: Any, y: Any) -> Tensor:
    """A sum of two recorded tensors, or the product of one with a number."""
    from quire.ops.cpu import recorded  # which builds on this module

    if func is torch.ops.aten.add.Tensor and isinstance(x, Tensor) and isinstance(y, Tensor):
        return recorded.add(x, y)
    if isinstance(y, Tensor) and y.dim() == 0 and y.device != _META:
        y = y.item()
    if func is torch.ops.aten.mul.Tensor and isinstance(x, Tensor) and isinstance(y, int | float):
        return recorded.multiply(x, float(y))
    raise NotCapturable(f"torch computes {func} of {type(x).__name__} and {type(y).__name__} between two ops")


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
