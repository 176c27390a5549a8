"""One function per tool: a layer's weight rounded to nearest, in tensors as the tool's own code packs them, and the weight that
this code reads from them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.quant.packages import awq_dequantize, awq_linear, compressor, gptq_linear
from tests.quant.writing import Encode, round_to_grid


def gptq(bits: int, group_size: int, symmetric: bool = True, act_order: str = "") -> Encode:
    """`act_order`: inputs are in groups at random, the "same" for all layers with as many inputs, each layer's "own", or one
    order for layers that read the "same inputs", an expert's gate and up among them.
    """

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        outputs, inputs = layer.weight.shape
        order = torch.arange(inputs)
        if act_order:
            seed = 0 if act_order == "same" else sum(_reader(name).encode() if act_order == "same inputs" else name.encode())
            order = torch.randperm(inputs, generator=torch.Generator().manual_seed(seed + inputs))
        g_idx = torch.empty(inputs, dtype=torch.int32)
        g_idx[order] = torch.arange(inputs, dtype=torch.int32) // (group_size if group_size > 0 else inputs)
        scales, zeros = round_to_grid(layer.weight[:, order], bits, group_size, symmetric)
        packed = gptq_linear()(bits, group_size, inputs, outputs, bias=False, weight_dtype=torch.float32)
        packed.pack(_plain(layer), scales.float(), zeros.float(), g_idx)
        tensors = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales.half(), "g_idx": g_idx}
        return tensors, packed(torch.eye(inputs)).T

    return encode


def _reader(name: str) -> str:
    """What the layers have in common that read what this one reads: GPTQ finds one order for all of them."""
    words = {"w3": "w1", "up_proj": "gate_proj", "k_proj": "q_proj", "v_proj": "q_proj"}
    layer, _, word = name.rpartition(".")
    return f"{layer}.{words.get(word, word)}"


def awq(group_size: int) -> Encode:
    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        scales, zeros = round_to_grid(layer.weight, 4, group_size, symmetric=False)
        size = group_size if group_size > 0 else layer.in_features
        packed = awq_linear().from_linear(_plain(layer), 4, size, False, scales.float().T, zeros.T)
        tensors = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}
        return tensors, awq_dequantize()(packed.qweight, packed.qzeros, packed.scales.float(), 4, size).T

    return encode


def compressed_tensors(format: str, bits: int, group_size: int | None = None, symmetric: bool = True) -> Encode:
    """`group_size` None: a scale per output."""
    tool, scheme = compressor(format), compressed_tensors_scheme(bits, group_size, symmetric)

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        scales, zeros = round_to_grid(layer.weight, bits, group_size or -1, symmetric)
        state = {"weight": layer.weight.detach(), "weight_scale": scales.float()}
        if not symmetric:
            state["weight_zero_point"] = (zeros - (1 << bits - 1)).to(torch.int8)
        state = tool.compress(state, scheme)
        return state, tool.decompress(state, scheme)["weight"]

    return encode


def compressed_tensors_scheme(bits: int, group_size: int | None, symmetric: bool) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "group" if group_size else "channel"
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size)
    return QuantizationScheme(targets=["Linear"], weights=args)


def float8_blocks(outputs: int, inputs: int) -> Encode:
    """A layer as transformers' FP8 quantizer writes it, a scale per block, and as it reads it back."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    settings = SimpleNamespace(weight_block_size=[outputs, inputs], scale_fmt="float")
    quantizer = SimpleNamespace(quantization_config=settings)

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        written = Fp8Quantize(quantizer).convert({"weight": layer.weight.detach().float()})
        values, scales = written["weight"], next(tensor for key, tensor in written.items() if key.endswith("scale_inv"))
        return {"weight": values, "weight_scale_inv": scales}, Fp8Dequantize(quantizer)._dequantize_one(values, scales)

    return encode


def float8_cut_blocks(outputs: int, inputs: int) -> Encode:
    """DeepSeek's own layout (2412.19437), where the last blocks of a matrix are cut short. transformers writes none of these."""

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        weight = layer.weight.detach().float()
        padding = (0, -weight.shape[1] % inputs, 0, -weight.shape[0] % outputs)
        blocks = nn.functional.pad(weight, padding).unflatten(0, (-1, outputs)).unflatten(2, (-1, inputs))
        scales = blocks.abs().amax((1, 3)) / 448
        wide = scales.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)[: weight.shape[0], : weight.shape[1]]
        values = (weight / wide).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale_inv": scales}, values.float() * wide

    return encode


def float8_compressed(strategy: str, block: tuple[int, int] = (32, 64)) -> Encode:
    """`strategy`: compressed-tensors' word for where scales are, "tensor", "channel" or "block"."""
    tool = compressor("float-quantized")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    shape = list(block) if strategy == "block" else None
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True, block_structure=shape)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        weight = layer.weight.detach().float()
        largest = {
            "tensor": lambda: weight.abs().amax().view(1),
            "channel": lambda: weight.abs().amax(1, keepdim=True),
            "block": lambda: weight.unflatten(0, (-1, block[0])).unflatten(2, (-1, block[1])).abs().amax((1, 3)),
        }[strategy]()
        state = {"weight": weight, "weight_scale": (largest / 448).bfloat16().float()}
        state = tool.compress(state, scheme)
        return state, tool.decompress(state, scheme)["weight"]

    return encode


def float8_static(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
    """AutoFP8's layout: scalars, and steps for activations and for a KV cache that nobody needs here."""
    weight = layer.weight.detach().float()
    scale = weight.abs().amax() / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    tensors = {"weight": values, "weight_scale": scale, "input_scale": torch.tensor(0.03)}
    if name.endswith("k_proj"):
        tensors["k_scale"] = torch.tensor(0.5)
    return tensors, values.float() * scale


def bitsandbytes_4bit(quant_type: str, nested: bool, blocksize: int = 64) -> Encode:
    """A layer's tensors by `quantize_4bit`, and the weight that `dequantize_4bit` makes of them."""
    functional = pytest.importorskip("bitsandbytes.functional")

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        packed, state = functional.quantize_4bit(
            layer.weight.detach().float(), blocksize=blocksize, quant_type=quant_type, compress_statistics=nested
        )
        tensors = {f"weight.{word}": tensor for word, tensor in state.as_dict(packed=True).items()}
        return {"weight": packed, **tensors}, functional.dequantize_4bit(packed, state)

    return encode


def bitsandbytes_8bit() -> Encode:
    """LLM.int8's tensors, and the weight that the package dequantizes."""
    functional = pytest.importorskip("bitsandbytes.functional")

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        values, absmax, _ = functional.int8_vectorwise_quant(layer.weight.detach().half())
        tensors = {"weight": values, "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return tensors, functional.int8_vectorwise_dequant(values, absmax)

    return encode


def squeezellm(bits: int, sparse: bool, full: bool) -> Encode:
    """A table of quantiles per output; the largest weights as outliers, less what their code gives. No package of it can be
    installed without a GPU, so the published layout (2306.07629) is spelled out.
    """

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        weight = layer.weight.detach().float()
        table = weight.quantile((torch.arange(1 << bits) + 0.5) / (1 << bits), dim=1).T.half().float()
        codes = (weight.unsqueeze(-1) - table.unsqueeze(1)).abs().argmin(-1)
        dense = table.gather(1, codes)
        tensors = {"qweight": _pack_codes(codes, bits), "lookup_table": table}
        if sparse:
            border = weight.abs().flatten().kthvalue(int(0.98 * weight.numel())).values
            outliers = torch.where(weight.abs() > border, weight - dense, 0).to_sparse_csr()
            dense = dense + outliers.to_dense()
            rows, cols = outliers.crow_indices().int(), outliers.col_indices().int()
            tensors |= {"rows": rows, "cols": cols, "vals": outliers.values()}
        if full:
            chosen = torch.tensor([5, 2])
            tensors |= {"full_rows": (weight - dense)[chosen].T.contiguous(), "full_row_indices": chosen.int()}
            dense = dense.index_add(0, chosen, (weight - dense)[chosen])
        return tensors, dense

    return encode


def _pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes [outputs, inputs] -> int32 [inputs * bits / 32, outputs]: an output's codes are one number, the lowest bits first."""
    stream = (codes.unsqueeze(-1) >> torch.arange(bits) & 1).flatten(1)
    words = (stream.unflatten(1, (-1, 32)) << torch.arange(32)).sum(-1)
    return torch.where(words >> 31 == 1, words - (1 << 32), words).int().T


def _plain(layer: nn.Linear) -> nn.Linear:
    """The layer's weight in float32, without its bias, which the tools would only copy."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight.data = layer.weight.detach().float().clone()
    return plain
