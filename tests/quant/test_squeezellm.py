"""SqueezeLLM checkpoints, packed by the published layout (2306.07629): no package of it can be installed without a GPU."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from quire.errors import ModelLoadError
from quire.loader.load import weight_bytes
from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model
from tests.quant.checks import SIZES, close_logits, loaded_weights, same_under_every_schedule, same_weights
from tests.quant.encoders import squeezellm
from tests.quant.writing import write

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
SETTINGS = {"quant_method": "squeezellm", "wbits": 4}


@pytest.mark.parametrize(("bits", "sparse", "full"), [(4, False, False), (3, False, False), (4, True, False), (4, True, True)])
def test_weights_and_logits_are_those_of_the_layout(bits, sparse, full, tmp_path, caplog):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, SETTINGS, squeezellm(bits, sparse, full))
    found, kept = loaded_weights(tmp_path)
    assert set(kept.values()) == {"row_table4"}
    same_weights(found, model)
    close_logits(tmp_path, model, 1e-3)
    if full:
        same_under_every_schedule(tmp_path, caplog)


def test_it_takes_the_file_s_size(tmp_path):
    model = make_model("llama-mha-biases-untied", **(SIZES | {"hidden_size": 256, "intermediate_size": 768}))
    write(model, tmp_path, SETTINGS, squeezellm(4, True, False))
    in_file = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    assert weight_bytes(load(tmp_path)) <= 1.03 * in_file


def test_inputs_that_no_packed_format_holds_become_floats(tmp_path):
    model = make_model("llama-mha-biases-untied", **(SIZES | {"intermediate_size": 136}))
    write(model, tmp_path, SETTINGS, squeezellm(4, True, False))
    found, kept = loaded_weights(tmp_path)
    assert kept["mlp.gate_up_proj"] == "row_table4" and kept["mlp.down_proj"] == "float32"
    same_weights(found, model)


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
