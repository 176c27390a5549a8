"""Recorded nodes, fewer: neighbours that one kernel does in one pass over its rows. The bits stay the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from quire.ops.cpu.graph import Node, Operand
from quire.ops.cpu.recorded import encode_builder, rotary_write_builder

Rule = Callable[[Node, Node], Node | None]


def fuse(nodes: list[Node], keep: Operand) -> list[Node]:
    """`nodes` with every pair merged that a rule knows and whose rows between nobody else reads; `keep` is read at the end."""
    readers = Counter(operand.buffer for node in nodes for operand in node.reads)
    readers[keep.buffer] += 1
    merged: list[Node] = []
    for node in nodes:
        pair = _merge(merged[-1], node, readers) if merged else None
        if pair is not None:
            merged[-1] = pair
        else:
            merged.append(node)
    return merged


def _merge(first: Node, second: Node, readers: Counter[int]) -> Node | None:
    rule = _RULES.get((first.name, second.name))
    if rule is None or second.reads[0] not in first.writes or readers[second.reads[0].buffer] != 1:
        return None
    return rule(first, second)


def _norm_then_encode(norm: Node, encode: Node) -> Node | None:
    if norm.info["heads"] != 1 or encode.reads[0] != norm.writes[0]:
        return None
    build = encode_builder(encode.info["weight"], norm.reads[0], encode.writes, norm)
    return Node("norm_encode", norm.reads, (*encode.writes, *norm.writes[1:]), build)


def _rotary_then_write(rotary: Node, write: Node) -> Node | None:
    if write.reads[0] != rotary.writes[1]:
        return None
    build = rotary_write_builder(rotary, write)
    return Node("rotary_write", (*rotary.reads, write.reads[1]), rotary.writes[:1], build)


_RULES: dict[tuple[str, str], Rule] = {
    ("rms_norm", "encode"): _norm_then_encode,
    ("layer_norm", "encode"): _norm_then_encode,
    ("rotary", "write_kv"): _rotary_then_write,
}
"""By the names of two neighbours, the second reading first what the first writes."""
