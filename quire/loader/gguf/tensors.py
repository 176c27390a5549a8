"""A GGUF file's tensors under Hugging Face's names, with their rows in Hugging Face's order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from quire.errors import ModelLoadError
from quire.loader.gguf.architectures import COMPUTED, FALCON_TWO_NORMS, Architecture
from quire.loader.gguf.blocks import BLOCK_TYPES, BlockType, floats_of
from quire.loader.gguf.config import architecture_of, hf_fields
from quire.loader.gguf.header import Header, TensorInfo, read_header
from quire.quant import Codes, EncodedWeight

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Named = tuple[str, Tensor | EncodedWeight]


class BlockWeight(EncodedWeight):
    """A matrix in blocks of one of ggml's types, where it lies in the file."""

    def __init__(self, blocks: Tensor, kind: BlockType, inputs: int, order: Tensor | None) -> None:
        """blocks uint8 [outputs, blocks of a row, bytes of a block]; `order`: the row of `blocks` for each of the matrix."""
        self.shape = (blocks.shape[0], inputs)
        self.format = kind.format
        self._blocks, self._kind, self._order = blocks, kind, order

    def codes(self, rows: Tensor) -> Codes:
        """See `EncodedWeight.codes`."""
        return self._kind.decode(self._blocks[rows if self._order is None else self._order[rows]])

    def dequantize(self, rows: Tensor) -> Tensor:
        """See `EncodedWeight.dequantize`."""
        return floats_of(self.codes(rows), self._kind.format)

    def tensors(self) -> list[Tensor]:
        """See `EncodedWeight.tensors`."""
        return [self._blocks]


def read_gguf(path: Path) -> Iterator[Named]:
    """Every tensor of the file, those of floats as they are and the others encoded. Raises ModelLoadError."""
    reader = _Reader(read_header(path))
    for info in reader.header.tensors:
        yield from reader.read(info)


class _Reader:
    def __init__(self, header: Header) -> None:
        self.header, self.architecture = header, architecture_of(header)
        self._data = torch.from_file(str(header.path), shared=False, size=header.path.stat().st_size, dtype=torch.uint8)
        fields = hf_fields(header)
        self._heads = fields["num_attention_heads"], fields["num_key_value_heads"], fields["head_dim"]
        self._layer_names = _layer_names(self.architecture, {tensor.name for tensor in header.tensors})

    def read(self, info: TensorInfo) -> Iterator[Named]:
        """One tensor, or its parts; nothing where the configuration has it."""
        module, _, leaf = info.name.rpartition(".")
        if module in COMPUTED:
            return
        outer, _, inner = module.rpartition(".")
        is_layer = outer.startswith("blk.")
        name = (self._layer_names if is_layer else self.architecture.names).get(inner)
        if name is None:
            yield info.name, self._tensor(info, None)
            return
        number = outer.removeprefix("blk.")
        target = f"{self.architecture.layer}.{number}.{name}" if is_layer else name
        if inner in self.architecture.head_norms:
            for head, weight in enumerate(self._tensor(info, None)):
                yield f"{target}.norms.{head}.{leaf}", weight
            return
        tensor = self._tensor(info, self._order(inner, info) if is_layer else None)
        if isinstance(tensor, Tensor):
            if self.architecture.norms_count_from_one and inner.endswith("norm"):
                tensor = tensor.float() - 1
            if inner in self.architecture.transposed and tensor.dim() == 2:
                tensor = tensor.T
        yield f"{target}.{leaf}", tensor

    def _order(self, module: str, info: TensorInfo) -> Tensor | None:
        rule = self.architecture.row_orders.get(module)
        if rule is None:
            return None
        order = torch.from_numpy(rule(*self._heads))
        if len(order) != info.shape[0]:
            raise ModelLoadError(
                f"{self.header.path}: tensor {info.name} must have {len(order)} rows, got {info.shape[0]}"
            )
        return order

    def _tensor(self, info: TensorInfo, order: Tensor | None) -> Tensor | EncodedWeight:
        data = self._data[info.start : info.start + info.num_bytes]
        dtype = _FLOATS.get(info.type.name)
        if dtype is not None:
            if info.start % dtype.itemsize:
                data = data.clone()
            tensor = data.view(dtype).view(info.shape)
            return tensor if order is None else tensor[order]
        if len(info.shape) != 2:
            raise ModelLoadError(
                f"{self.header.path}: tensor {info.name} of type {info.type.name} must be a matrix, got shape {list(info.shape)}"
            )
        blocks = data.view(info.shape[0], -1, info.type.num_bytes)
        return BlockWeight(blocks, BLOCK_TYPES[info.type.name], info.shape[1], order)


def _layer_names(architecture: Architecture, tensors: set[str]) -> dict[str, str]:
    if architecture.model_type == "falcon" and "blk.0.attn_norm_2.weight" in tensors:
        return architecture.layer_names | FALCON_TWO_NORMS
    return architecture.layer_names
