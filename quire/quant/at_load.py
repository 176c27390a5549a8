"""int8, int4 and float8 weights, rounded to nearest while a float checkpoint is read."""

from __future__ import annotations

from dataclasses import replace

from quire.log import get_logger, warn_once
from quire.ops.weights import GROUP_SIZES, WeightFormat
from quire.quant.base import WeightShard
from quire.quant.packing import PackedMethod

_logger = get_logger(__name__)


class QuantizedAtLoad(PackedMethod):
    """Weights in a format with scales; see `WeightFormat` for what its groups mean."""

    def format_for(self, shard: WeightShard) -> WeightFormat:
        """The format, or where its groups do not divide a layer's inputs the nearest that fits."""
        return fitting_format(self.format, shard.input_size)


def fitting_format(format: WeightFormat, input_size: int) -> WeightFormat:
    """`format`, or the largest smaller groups that divide `input_size`, or int8; a change is logged once."""
    if format.name != "int4" or input_size % format.group_size == 0:
        return format
    sizes = [size for size in GROUP_SIZES if size < format.group_size and input_size % size == 0]
    fitting = replace(format, group_size=sizes[-1]) if sizes else replace(format, name="int8", group_size=0)
    shown = f"int4 in groups of {fitting.group_size}" if sizes else "int8"
    warn_once(
        _logger,
        f"layers with {input_size} inputs, no multiple of quantization_group_size {format.group_size}, are stored as {shown}",
    )
    return fitting
