"""The two forms in which checkpoints have the experts of a mixture, as parts of the parameters of `quire.layers.MoE`.

One tensor per expert and projection, `experts.3.w1.weight`: its word is in the model's `packed_weights`, or names the parameter.
Or all experts in one tensor, `experts.gate_up_proj` [experts, 2 * intermediate, hidden] and `experts.down_proj`
[experts, hidden, intermediate].
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor

_WORD = "experts"
_STACKS: dict[str, tuple[Hashable, ...]] = {"gate_up_proj": (0, 1), "down_proj": (None,)}
"""Parts of one expert in a tensor of all experts, one below the other."""


def expert_part(words: list[str], packed: Mapping[str, tuple[str, Hashable]]) -> tuple[str, Hashable] | None:
    """The part that a tensor of one expert is; None for any other tensor."""
    for i, word in enumerate(words[:-3]):
        if word == _WORD and words[i + 1].isdecimal():
            target, part = packed.get(words[i + 2], (words[i + 2], None))
            return ".".join([*words[: i + 1], target, *words[i + 3 :]]), (int(words[i + 1]), part)
    return None


def stacked_parts(words: list[str], tensor: Tensor) -> list[tuple[tuple[str, Hashable], Tensor]] | None:
    """The parts in a tensor of all experts, as views; None for any other tensor."""
    if words[-2:-1] != [_WORD] or words[-1] not in _STACKS or tensor.dim() != 3:
        return None
    target, halves = ".".join([*words, "weight"]), _STACKS[words[-1]]
    if tensor.shape[1] % len(halves):
        raise ValueError(
            f"shape {list(tensor.shape)}, but the architecture needs an even number of rows per expert"
        )
    return [
        ((target, (expert, half)), piece)
        for expert, matrix in enumerate(tensor)
        for half, piece in zip(halves, matrix.chunk(len(halves)), strict=True)
    ]


def name_of_expert(
    words: list[str], part_id: Hashable, spelled: Mapping[tuple[str, Hashable], str]
) -> str | None:
    """The name that a checkpoint has for one expert's tensor, from the parameter's; None where `part_id` is no expert's."""
    if not isinstance(part_id, tuple) or _WORD not in words:
        return None
    expert, part = part_id
    at = words.index(_WORD) + 1
    word = spelled.get((words[at], part), words[at])
    return ".".join([*words[:at], str(expert), word, *words[at + 1 :]])
