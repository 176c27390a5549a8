"""A GGUF model's tensors under Hugging Face's names, with their rows in Hugging Face's order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from quire.errors import ModelLoadError
from quire.loader.gguf.architectures import COMPUTED, EXPERT, FALCON_TWO_NORMS, Architecture
from quire.loader.gguf.blocks import BLOCK_TYPES, BlockType, floats_of
from quire.loader.gguf.config import architecture_of, hf_fields
from quire.loader.gguf.header import TensorInfo
from quire.loader.gguf.parts import read_parts
from quire.quant import Codes, EncodedWeight

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LAYER = "blk."
_LATENT_HALVES = ("attn_k_b", "attn_v_b")
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


class _Part(NamedTuple):
    """A tensor of a layer, or what would be one had the converter not put it together with others."""

    module: str
    """llama.cpp's name of it within the layer."""
    info: TensorInfo
    view: Tensor
    """Its numbers [..., inputs], or its blocks uint8 [..., blocks of a row, bytes of a block], as they lie in the file."""

    def rows(self, module: str, start: int, stop: int) -> _Part:
        """Some rows of each of its matrices, which are another module's."""
        along = 0 if len(self.info.shape) < 3 else 1
        return _Part(module, self.info, self.view.narrow(along, start, stop - start))


class GgufReader:
    """The tensors of one model, file by file."""

    def __init__(self, path: Path) -> None:
        """`path`: the file, or the first of several parts. Raises ModelLoadError."""
        self.header = read_parts(path)
        self.architecture = architecture_of(self.header)
        self.files = sorted({tensor.path for tensor in self.header.tensors})
        self._tensors = {tensor.name: tensor for tensor in self.header.tensors}
        self._data = {file: _mapped(file) for file in self.files}
        fields = hf_fields(self.header)
        self._num_layers = fields["num_hidden_layers"]
        self._heads = fields["num_attention_heads"], fields["num_key_value_heads"], fields["head_dim"]
        self._layer_names = _layer_names(self.architecture, self._tensors.keys())

    def read(self, file: Path) -> Iterator[Named]:
        """Every tensor of one of `files`, those of floats as they are and the others encoded. Raises ModelLoadError."""
        for info in self.header.tensors:
            if info.path == file:
                yield from self._read(info)

    def _read(self, info: TensorInfo) -> Iterator[Named]:
        """One tensor, or its parts; nothing where the configuration has it, or where only later predictions need it."""
        module, _, leaf = info.name.rpartition(".")
        if module in COMPUTED:
            return
        outer, _, inner = module.rpartition(".")
        number = outer.removeprefix(_LAYER)
        if outer == number or not number.isdecimal():
            name = self.architecture.names.get(module)
            tensor = self._finished(module, self._weight(info, self._view(info), None))
            yield (info.name if name is None else f"{name}.{leaf}"), tensor
        elif int(number) < self._num_layers:
            if inner in _LATENT_HALVES:
                yield from self._latent_up_projection(outer, f"{self.architecture.layer}.{number}", inner, leaf)
                return
            for part in self._parts(outer, _Part(inner, info, self._view(info))):
                yield from self._named(f"{self.architecture.layer}.{number}", leaf, part)

    def _parts(self, layer: str, whole: _Part) -> Iterator[_Part]:
        """What a tensor of a layer is made of, in the modules that the architecture has."""
        if whole.module == "attn_qkv" and whole.module not in self._layer_names:
            yield from self._queries_keys_values(whole)
        elif whole.module == "ffn_gate_up_exps":
            half = whole.info.shape[-2] // 2
            yield whole.rows("ffn_gate_exps", 0, half)
            yield whole.rows("ffn_up_exps", half, whole.info.shape[-2])
        else:
            yield whole

    def _queries_keys_values(self, whole: _Part) -> Iterator[_Part]:
        heads, kv_heads, head_dim = self._heads
        start, counts = 0, {"attn_q": heads, "attn_k": kv_heads, "attn_v": kv_heads}
        self._check_rows(whole.info, whole.view, sum(counts.values()) * head_dim)
        for module, count in counts.items():
            yield whole.rows(module, start, start + count * head_dim)
            start += count * head_dim

    def _latent_up_projection(self, layer: str, target: str, inner: str, leaf: str) -> Iterator[Named]:
        """kv_b_proj, from the two tensors that newer converters cut it into: per head W_UK, transposed, and W_UV.

        It comes with the first of the two; and not at all where the file has it whole too.
        """
        if inner != _LATENT_HALVES[0] or f"{layer}.attn_kv_b.{leaf}" in self._tensors:
            return
        keys, values = (self._float_stack(f"{layer}.{half}.{leaf}") for half in _LATENT_HALVES)
        if keys.shape[0] != values.shape[0] or keys.shape[1] != values.shape[2]:
            raise ModelLoadError(
                f"{self.header.path}: tensors {layer}.{_LATENT_HALVES[0]} {list(keys.shape)} and {_LATENT_HALVES[1]} "
                f"{list(values.shape)} must have the same heads and the same latents"
            )
        yield f"{target}.{self._layer_names['attn_kv_b']}.{leaf}", torch.cat((keys.mT, values), 1).flatten(0, 1)

    def _float_stack(self, name: str) -> Tensor:
        """A tensor of matrices [heads, outputs, inputs] in float32."""
        info = self._tensors.get(name)
        if info is None:
            raise ModelLoadError(f"{self.header.path}: tensor {name} is missing")
        self._check_dims(info, 3)
        weight = self._weight(info, self._view(info).flatten(0, 1), None)
        if not isinstance(weight, Tensor):
            weight = weight.dequantize(torch.arange(weight.shape[0]))
        return weight.float().view(info.shape)

    def _named(self, layer: str, leaf: str, part: _Part) -> Iterator[Named]:
        """A part of a layer as tensors of Hugging Face's: one, or one for each expert or head."""
        whole_name = self._layer_names.get(f"{part.module}.{leaf}")
        name = self._layer_names.get(part.module)
        if whole_name is not None:
            yield f"{layer}.{whole_name}", self._weight(part.info, part.view, None)
        elif name is None:
            yield part.info.name, self._weight(part.info, part.view, None)
        elif EXPERT in name:
            self._check_dims(part.info, 3)
            for expert, matrix in enumerate(part.view):
                yield f"{layer}.{name.replace(EXPERT, str(expert))}.{leaf}", self._weight(part.info, matrix, None)
        elif part.module in self.architecture.head_norms:
            for head, weight in enumerate(part.view):
                yield f"{layer}.{name}.norms.{head}.{leaf}", weight
        else:
            view = part.view
            if part.module in self.architecture.rows_of_one and view.dim() == 1:
                view = view.unsqueeze(0)
            tensor = self._weight(part.info, view, self._order(part))
            yield f"{layer}.{name}.{leaf}", self._finished(part.module, tensor)

    def _finished(self, module: str, tensor: Tensor | EncodedWeight) -> Tensor | EncodedWeight:
        """A tensor in floats as Hugging Face has it; the rows of others are outputs in either form."""
        if isinstance(tensor, Tensor):
            if self.architecture.norms_count_from_one and module.endswith("norm"):
                tensor = tensor.float() - 1
            if module in self.architecture.transposed and tensor.dim() == 2:
                tensor = tensor.T
        return tensor

    def _order(self, part: _Part) -> Tensor | None:
        rule = self.architecture.row_orders.get(part.module)
        if rule is None:
            return None
        order = torch.from_numpy(rule(*self._heads))
        self._check_rows(part.info, part.view, len(order))
        return order

    def _view(self, info: TensorInfo) -> Tensor:
        """See `_Part.view`."""
        data = self._data[info.path][info.start : info.start + info.num_bytes]
        dtype = _FLOATS.get(info.type.name)
        if dtype is None:
            return data.view(*info.shape[:-1], -1, info.type.num_bytes)
        if info.start % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(info.shape)

    def _weight(self, info: TensorInfo, view: Tensor, order: Tensor | None) -> Tensor | EncodedWeight:
        """A tensor of floats, or a matrix of blocks; of the view's rows in an order."""
        if info.type.name in _FLOATS:
            return view if order is None else view[order]
        if view.dim() != 3:
            raise ModelLoadError(
                f"{info.path}: tensor {info.name} of type {info.type.name} must be a matrix, got shape {list(info.shape)}"
            )
        return BlockWeight(view, BLOCK_TYPES[info.type.name], info.shape[-1], order)

    @staticmethod
    def _check_rows(info: TensorInfo, view: Tensor, expected: int) -> None:
        if view.shape[0] != expected:
            raise ModelLoadError(f"{info.path}: tensor {info.name} must have {expected} rows, got {view.shape[0]}")

    @staticmethod
    def _check_dims(info: TensorInfo, expected: int) -> None:
        if len(info.shape) != expected:
            raise ModelLoadError(
                f"{info.path}: tensor {info.name} must have {expected} dimensions, got shape {list(info.shape)}"
            )


def _mapped(file: Path) -> Tensor:
    """A file's bytes, which take memory when they are read."""
    return torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)


def _layer_names(architecture: Architecture, tensors: Collection[str]) -> dict[str, str]:
    if architecture.model_type == "falcon" and "blk.0.attn_norm_2.weight" in tensors:
        return architecture.layer_names | FALCON_TWO_NORMS
    return architecture.layer_names
