"""SqueezeLLM checkpoints, packed by the published layout (2306.07629): no package of it can be installed without a GPU."""

from __future__ import annotations

import pytest
import torch

from quire.errors import ModelLoadError
from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model
from tests.quant.checks import SIZES, close_logits, loaded_weights, same_weights
from tests.quant.writing import write

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
SETTINGS = {"quant_method": "squeezellm", "wbits": 4}


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [outputs, inputs] -> int32 [inputs * bits / 32, outputs], as one long number per output, spelled out."""
    columns = []
    for row in codes.tolist():
        number = sum(code << bits * i for i, code in enumerate(row))
        words = [number >> 32 * i & 0xFFFFFFFF for i in range(len(row) * bits // 32)]
        columns.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(columns, dtype=torch.int32).T


def encode_with(bits: int, sparse: bool, full: bool):
    """A table of quantiles per output; the largest weights as outliers, less what their code gives."""

    def encode(name, layer):
        weight = layer.weight.detach()
        table = weight.quantile((torch.arange(1 << bits) + 0.5) / (1 << bits), dim=1).T.half().float()
        codes = (weight.unsqueeze(-1) - table.unsqueeze(1)).abs().argmin(-1)
        dense = table.gather(1, codes)
        tensors = {"qweight": pack_codes(codes, bits), "lookup_table": table}
        if sparse:
            outliers = torch.where(weight.abs() > weight.abs().quantile(0.98), weight - dense, 0).to_sparse_csr()
            dense = dense + outliers.to_dense()
            rows, cols = outliers.crow_indices().int(), outliers.col_indices().int()
            tensors |= {"rows": rows, "cols": cols, "vals": outliers.values()}
        if full:
            chosen = torch.tensor([5, 2])
            tensors |= {"full_rows": (weight - dense)[chosen].T.contiguous(), "full_row_indices": chosen.int()}
            dense = dense.index_add(0, chosen, (weight - dense)[chosen])
        return tensors, dense

    return encode


@pytest.mark.parametrize(("bits", "sparse", "full"), [(4, False, False), (3, False, False), (4, True, False), (4, True, True)])
def test_weights_and_logits_are_those_of_the_layout(bits, sparse, full, tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, SETTINGS, encode_with(bits, sparse, full))
    found, _ = loaded_weights(tmp_path)
    same_weights(found, model)
    close_logits(tmp_path, model, 1e-3)


def test_what_does_not_fit_together_is_named(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    for changes, message in (
        ({"lookup_table": None}, "no lookup_table beside its other tensors"),
        ({"lookup_table": torch.ones(128, 5)}, r"and lookup_table of shape \[128, 5\]"),
        ({"cols": None}, "no cols beside its other outliers"),
        ({"rows": torch.arange(129).int()}, "no compressed rows of a matrix"),
        ({"full_row_indices": torch.tensor([5, 128]).int()}, "for 2 rows of a matrix"),
    ):

        def encode(name, layer, changes=changes):
            tensors, weight = encode_with(4, True, True)(name, layer)
            if name.endswith("layers.0.self_attn.o_proj"):
                tensors = {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}
            return tensors, weight

        write(model, tmp_path, SETTINGS, encode)
        with pytest.raises(ModelLoadError, match=message):
            load(tmp_path)
