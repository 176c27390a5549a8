"""Turns the modules of a transformers model into layers that Quire's loader fills, in place and under the same names.

Linear layers, experts, the token embedding and the output head become Quire's own, so that they are packed or quantized as in any
model; whatever else has parameters stays as it is written and receives them as they are in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quire.errors import UnsupportedModelError
from quire.layers import ColumnLinear, LMHead, TiedLMHead, VocabEmbedding
from quire.quant import Loadable, Slot, share_of

_ROUTERS = ("gate", "router", "shared_expert_gate")
"""Linear layers that choose experts: a choice is not to be rounded."""


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made in this context have parameters without memory; their buffers, tables above all, are computed as ever."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def use_quire_layers(model: nn.Module, body: nn.Module, is_tied: bool) -> None:
    """Replace the layers of `model` (class of transformers with output head), whose `body` is everything below the head.

    Raises UnsupportedModelError for a model whose parts are not those of a causal language model.
    """
    from transformers.pytorch_utils import Conv1D

    embedding, head = body.get_input_embeddings(), model.get_output_embeddings()
    tokens = _token_embedding(embedding) if type(embedding) is nn.Embedding else None
    for name, module in list(model.named_modules()):
        if module is embedding and tokens is not None:
            _put(model, name, tokens)
        elif module is head:
            _put(model, name, _output_head(module, tokens, is_tied))
        elif type(module) is nn.Linear:
            _put(model, name, _linear(module, is_router=name.rpartition(".")[2] in _ROUTERS))
        elif isinstance(module, Conv1D):
            _put(model, name, _Transposed(module.nx, module.nf, bias=True))
        elif hasattr(module, "_apply_gate") and hasattr(module, "gate_up_proj"):
            _put(model, name, Experts(module))
    for module in list(model.modules()):
        if not isinstance(module, Loadable) and _own_tensors(module):
            _make_loadable(module)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


class _Linear(ColumnLinear):
    """A linear layer; `is_router`: never quantized."""

    def __init__(self, input_size: int, output_size: int, bias: bool, is_router: bool = False) -> None:
        super().__init__(input_size, output_size, bias)
        if is_router:
            self.shard = replace(self.shard, is_exact=True)


class _Transposed(ColumnLinear):
    """A linear layer whose weight stands in the checkpoint as [input_size, output_size]."""

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """All of it."""
        return super().place(shape, tensor.T if tensor.dim() == 2 else tensor, part_id)


class _Head(LMHead):
    """The output head over any leading dimensions."""

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., hidden_size] -> logits [..., vocab_size]."""
        return super().forward(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])


class _TiedHead(TiedLMHead):
    """The same with the weight of the token embedding."""

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., hidden_size] -> logits [..., vocab_size]."""
        return super().forward(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])


def _linear(module: nn.Linear, is_router: bool) -> _Linear:
    return _Linear(module.in_features, module.out_features, module.bias is not None, is_router)


def _token_embedding(module: nn.Embedding) -> VocabEmbedding:
    return VocabEmbedding(module.num_embeddings, module.embedding_dim)


def _output_head(module: nn.Module, tokens: VocabEmbedding | None, is_tied: bool) -> nn.Module:
    """Quire's head in place of transformers', with the weight of `tokens` where they are tied."""
    if not isinstance(module, nn.Linear):
        raise UnsupportedModelError(f"its output head is a {type(module).__name__}, not a linear layer")
    if not is_tied:
        return _Head(module.out_features, module.in_features, module.bias is not None)
    if tokens is None or module.bias is not None:
        what = "has a bias" if module.bias is not None else "is tied to a token embedding of a class of its own"
        raise UnsupportedModelError(f"its tied output head {what}")
    return _TiedHead(tokens)


class Experts(nn.Module):
    """Experts of a mixture (1701.06538): of every token the weighted sum over its own experts, in the order of their numbers.

    Replaces a module of transformers that holds all experts in two tensors; the function between both products is still that
    module's. Each expert is a child of the name that it has in most checkpoints, its number.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        for name, wanted in _EXPERTS_FORM.items():
            if getattr(module, name, wanted) != wanted:
                raise UnsupportedModelError(f"its experts ({type(module).__name__}) have {name}={not wanted}")
        self._module = (module,)  # in a tuple: not a child, since it has nothing left to load
        count, twice_inner, hidden = module.gate_up_proj.shape
        self.num_experts, self.hidden_size = count, hidden
        for index in range(count):
            self.add_module(str(index), _Expert(hidden, twice_inner // 2))

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden [T, hidden_size], index and weight of each token's experts [T, k] -> [T, hidden_size]."""
        out = torch.zeros_like(hidden)
        for index in range(self.num_experts):
            tokens, places = torch.where(top_k_index == index)
            if len(tokens) == 0:
                continue
            expert = self.get_submodule(str(index))
            inner = self._module[0]._apply_gate(expert.gate_and_up(hidden[tokens]))
            product = expert.down_proj(inner) * top_k_weights[tokens, places].unsqueeze(-1)
            out[tokens] += product.to(out.dtype)
        return out


_EXPERTS_FORM = {
    "has_gate": True,
    "has_bias": False,
    "is_transposed": False,
    "is_concatenated": True,
    "has_post_expert_norm": False,
}
"""Of the forms that transformers knows the one that `Experts` computes."""


class _Expert(nn.Module):
    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_proj = ColumnLinear(hidden_size, inner_size)
        self.up_proj = ColumnLinear(hidden_size, inner_size)
        self.down_proj = ColumnLinear(inner_size, hidden_size)

    def gate_and_up(self, x: Tensor) -> Tensor:
        """x [T, hidden_size] -> [T, 2 * inner_size]."""
        return torch.cat((self.gate_proj(x), self.up_proj(x)), dim=-1)


EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""By transformers' name for the weights of all experts: an expert's own, in the order in which transformers joins them."""


class _Parameters(Loadable):
    """Mixed into the class of a module that keeps its own code: its parameters and saved buffers arrive through slots."""

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """All of it."""
        return 0, share_of(tensor.reshape(shape) if tensor.numel() == 1 else tensor, shape, 0, 0, 1)

    def after_load(self) -> None:
        """Parameters stay parameters and buffers buffers."""
        for name, slot in self.slots.items():
            tensor = slot.tensor.view(getattr(self, name).shape)
            if name in self._parameters:
                self._parameters[name] = nn.Parameter(tensor, requires_grad=False)
            else:
                self._buffers[name] = tensor
        self.slots.clear()


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint has for a module itself, without its children."""
    saved = {name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}
    return {name: tensor for name, tensor in (module._parameters | saved).items() if tensor is not None}


def _make_loadable(module: nn.Module) -> None:
    """Give a module slots for its tensors, and its class what the loader calls."""
    own, place = _own_tensors(module), partial(_Parameters.place, module)
    slots = {name: Slot(tuple(tensor.shape) or (1,), place, dtype=tensor.dtype) for name, tensor in own.items()}
    module.__class__ = type(type(module).__name__, (type(module), _Parameters), {})
    module.__dict__["slots"] = slots
