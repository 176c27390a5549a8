"""From the names in a checkpoint to parts of a model's parameters, and back for messages.

A model class says what differs between its own names and a checkpoint's:
  packed_weights    word of a checkpoint's name -> (word of the parameter's name, part): q_proj is part "q" of qkv_proj.
  fused_weights     word of a checkpoint's name -> a cut (`quire.layers.fused`) of its tensor into parts of the parameter.
  rename            a function of a checkpoint's name: the name to go on with, or None for a tensor that is not needed.
The last two are optional; `fused_weights` may be set by the instance, since cuts depend on the configuration. Experts
of a mixture have a number in their names, or one tensor for all of them: see `quire.loader.experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor, nn

from quire.layers import MoE, TiedLMHead
from quire.layers.fused import Cut, Transposed
from quire.loader.experts import expert_part, name_of_expert, stacked_parts

Part = tuple[str, Hashable]
"""A parameter's name, and which part of it."""


class Names:
    """A model's names and those of its checkpoints."""

    def __init__(self, model: nn.Module) -> None:
        self._packed: dict[str, tuple[str, Hashable]] = getattr(model, "packed_weights", {})
        self._fused: dict[str, Cut] = getattr(model, "fused_weights", {})
        self._rename: Callable[[str], str | None] = getattr(model, "rename", _as_it_is)
        tied = (name for name, layer in model.named_modules() if isinstance(layer, TiedLMHead))
        self._tied = {f"{name}.weight" for name in tied}
        self._has_stacks = any(isinstance(layer, MoE) for layer in model.modules())

    def is_passed_over(self, name: str) -> bool:
        """Whether a checkpoint's tensor is no parameter."""
        renamed = self._rename(name)
        return renamed is None or "rotary_emb." in renamed or renamed in self._tied

    def cut(self, name: str, tensor: Tensor) -> list[tuple[Part, Tensor]]:
        """What a checkpoint's tensor gives, each with the part that it is. ValueError: it cannot be cut."""
        return self._cut(name, tensor, lambda cut: cut)

    def cut_rows(self, name: str, numbers: Tensor) -> list[tuple[Part, Tensor]]:
        """The same for the row numbers [outputs, 1] of a quantized weight, whose rows are outputs in every checkpoint."""
        return self._cut(name, numbers, lambda cut: cut.of_rows if isinstance(cut, Transposed) else cut)

    def is_transposed(self, name: str, tensor: Tensor) -> bool:
        """Whether a checkpoint's tensor is a weight stored as [inputs, outputs]."""
        words = (self._rename(name) or name).split(".")
        return tensor.dim() == 2 and any(isinstance(self._fused.get(word), Transposed) for word in words)

    def _cut(self, name: str, tensor: Tensor, choose: Callable[[Cut], Cut]) -> list[tuple[Part, Tensor]]:
        words = (self._rename(name) or name).split(".")
        if self._has_stacks:
            part = expert_part(words, self._packed)
            parts = [(part, tensor)] if part is not None else stacked_parts(words, tensor)
            if parts is not None:
                return parts
        for i, word in enumerate(words):
            if word in self._fused:
                target, cut = ".".join(words), choose(self._fused[word])
                return [((target, part_id), piece) for part_id, piece in cut(tensor).items()]
            if word in self._packed:
                words[i], part_id = self._packed[word]
                return [((".".join(words), part_id), tensor)]
        return [((".".join(words), None), tensor)]

    def in_checkpoint(self, parts: set[Part]) -> list[str]:
        """The names that a checkpoint has for parts of parameters."""
        spelled = {target: word for word, target in self._packed.items()}
        found = set()
        for name, part_id in parts:
            words = name.split(".")
            renamed = [str(spelled.get((word, part_id), word)) for word in words]
            found.add(name_of_expert(words, part_id, spelled) or ".".join(renamed))
        return sorted(found)


def shares_memory(piece: Tensor, tensor: Tensor) -> bool:
    """Whether a piece is a view of the tensor."""
    return piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _as_it_is(name: str) -> str:
    return name
