"""SqueezeLLM checkpoints, packed by the published layout (2306.07629): no package of it can be installed without a GPU."""

from __future__ import annotations

import pytest
import torch

from quire.errors import ModelLoadError
from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model
from tests.quant.checks import SIZES, close_logits, loaded_weights, same_weights
from tests.quant.encoders import squeezellm
from tests.quant.writing import write

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
SETTINGS = {"quant_method": "squeezellm", "wbits": 4}


@pytest.mark.parametrize(("bits", "sparse", "full"), [(4, False, False), (3, False, False), (4, True, False), (4, True, True)])
def test_weights_and_logits_are_those_of_the_layout(bits, sparse, full, tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, SETTINGS, squeezellm(bits, sparse, full))
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
            tensors, weight = squeezellm(4, True, True)(name, layer)
            if name.endswith("layers.0.self_attn.o_proj"):
                tensors = {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}
            return tensors, weight

        write(model, tmp_path, SETTINGS, encode)
        with pytest.raises(ModelLoadError, match=message):
            load(tmp_path)
