"""How integers lie in a checkpoint's tensors, and what its configuration says of them: one file per layout."""

from __future__ import annotations

from quire.quantize.layouts.base import Layout
from quire.quantize.layouts.compressed_tensors import CompressedTensorsLayout
from quire.quantize.layouts.gptq import GptqLayout

LAYOUTS: dict[str, Layout] = {"compressed-tensors": CompressedTensorsLayout(), "gptq": GptqLayout()}
