"""Models of transformers on Quire's paged cache, scheduler, sampler and linear layers: for architectures without a file here.

Attention goes through transformers' attention interface, where a function of ours stores keys and values and reads the batch from
the forward context. Everything between the layers is torch as transformers has it, op by op.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quire.config.types import HFConfig, ModelConfig
from quire.errors import ModelLoadError, UnsupportedModelError
from quire.layers.attention import attend
from quire.layers.rows_alone import RowsAlone, rows_alone
from quire.models.transformers_classes import find_class, load_config
from quire.models.transformers_layers import EXPERT_PARTS, parameters_on_meta, use_quire_layers

_ATTENTION = "quire"
"""The name under which transformers knows our attention."""
_UNSTRETCHED = "default"


class TransformersForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request.

    Its children are those of the class in transformers, under their names. Raises UnsupportedModelError for what cannot run so.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._hf = config.hf
        self.not_capturable = f"{config.hf.architecture} of transformers computes in torch between its layers"
        model = _build(config)
        body = getattr(model, model.base_model_prefix, None)
        if not isinstance(body, nn.Module) or body is model:
            raise _refusal(config.hf, f"it has no part named {model.base_model_prefix!r} below its output head")
        if _own_parameters(model):
            raise _refusal(config.hf, f"parameters outside its parts: {', '.join(_own_parameters(model))}")
        self._text = model.config.get_text_config(decoder=True)
        self._naming = _Naming(model)
        try:
            use_quire_layers(model, body, bool(self._text.tie_word_embeddings))
        except UnsupportedModelError as error:
            raise _refusal(config.hf, str(error)) from None
        _fix_rotary(body, config.max_model_len)
        for name, child in model.named_children():
            self.add_module(name, child)
        given = _GivenHidden()
        setattr(model, model.base_model_prefix, given)
        self._body = (body,)  # in tuples: these are among this module's children already, or not to be
        self._head_of = (model.eval(), given)
        self._device = torch.get_default_device()
        self._mode: RowsAlone | None = None

    def rename(self, name: str) -> str | None:
        """A parameter's name from a checkpoint's; see `quire.loader.naming`."""
        return self._naming.rename(name)

    def after_load(self) -> None:
        """Once all weights are there: run two tokens, to see that each layer attends as Quire can.

        Raises UnsupportedModelError with what it does instead.
        """
        matrices = [p for p in self.parameters() if p.dim() == 2]
        self._mode = RowsAlone(matrices)
        ids, positions = (torch.tensor(numbers, device=self._device) for numbers in ([0, 0], [0, 1]))
        with _watched_attention() as calls:
            try:
                self.compute_logits(self(ids, positions))
            except UnsupportedModelError as error:
                raise _refusal(self._hf, str(error)) from None
            except Exception as error:
                reason = f"it does not run on Quire's layers: {type(error).__name__}: {error}"
                raise _refusal(self._hf, reason) from error
        _check_calls(calls, self._hf, self._text)

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        assert self._mode is not None, "after_load was not called"
        with rows_alone(self._mode, token_ids.device):
            out = self._body[0](input_ids=token_ids.long()[None], position_ids=positions.long()[None], use_cache=False)
        return out[0][0]

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        assert self._mode is not None, "after_load was not called"
        model, given = self._head_of
        given.hidden = hidden[None]
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        with rows_alone(self._mode, hidden.device):
            logits = model(input_ids=ids, use_cache=False).logits
        return logits[0].float().contiguous()


class _GivenHidden(nn.Module):
    """Stands below the output head for the body whose hidden states are known already."""

    hidden: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        return MoeModelOutputWithPast(last_hidden_state=self.hidden)


def _build(config: ModelConfig) -> Any:
    """The class of transformers, its parameters without memory."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    hf_config = load_config(config.path, config.hf.fields, config.trust_remote_code)
    model_class = find_class(config.path, config.hf.fields, config.trust_remote_code)
    hf_config._attn_implementation = _ATTENTION
    hf_config.dtype = torch.get_default_dtype()
    try:
        with parameters_on_meta():
            return model_class(hf_config)
    except Exception as error:
        raise _refusal(config.hf, f"its class cannot be made: {type(error).__name__}: {error}") from error


def _own_parameters(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters(recurse=False)]


def _refusal(hf: HFConfig, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"architecture {hf.architecture} cannot run through transformers on Quire's cache: {reason}")


# -- attention -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """What one attention layer asked for."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None


_calls: list[_Call] | None = None
"""Where calls are written down instead of computed; None while the model runs."""

_PASSED_OVER = frozenset(
    [
        *("cache", "cache_position", "dropout", "past_key_values", "position_embeddings", "position_ids", "use_cache"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch"),
    ]
)
"""Arguments of transformers' attention functions that change nothing for tokens of a paged cache."""


class _watched_attention:
    """Collects the calls of a model that runs in this context; they return zeros."""

    def __enter__(self) -> list[_Call]:
        global _calls
        _calls = []
        return _calls

    def __exit__(self, *error: object) -> None:
        global _calls
        _calls = None


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, KH, T, D] -> ([1, T, H, D], None).

    Values narrower than keys, as in multi-head latent attention (2405.04434), are stored with zeros behind them.
    """
    layer, width = int(module.layer_idx), value.shape[-1]
    if _calls is not None:
        _refuse_arguments(module, attention_mask, is_causal, others)
        _calls.append(_Call(layer, query.shape[1], key.shape[1], key.shape[3], sliding_window))
        return value.new_zeros(1, query.shape[2], query.shape[1], width), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if width < k.shape[2]:
        v = nn.functional.pad(v, (0, k.shape[2] - width))
    scale = k.shape[2] ** -0.5 if scaling is None else float(scaling)
    out = attend(q, k, v, layer, scale, sliding_window, soft_cap=softcap)
    return out[None, :, :, :width], None


def _refuse_arguments(
    module: Any, mask: Tensor | None, is_causal: bool | None, others: dict[str, Any]
) -> None:
    """Raises UnsupportedModelError for attention of another kind than the kernels'."""
    if mask is not None:
        raise UnsupportedModelError("its attention has a mask of its own")
    if is_causal is False or (is_causal is None and not getattr(module, "is_causal", True)):
        raise UnsupportedModelError("its attention is not causal: every token sees those after it, or another sequence")
    unknown = [name for name, given in others.items() if given is not None and name not in _PASSED_OVER]
    if unknown:
        raise UnsupportedModelError(f"its attention takes {', '.join(unknown)}, which Quire's kernels do not")


def _check_calls(calls: list[_Call], hf: HFConfig, text: Any) -> None:
    """Raises UnsupportedModelError unless every layer attended once, in the shape of the cache and the window of its kind."""
    layers = sorted(call.layer for call in calls)
    if layers != list(range(hf.num_hidden_layers)):
        reason = f"of its {hf.num_hidden_layers} layers these attend through transformers' attention interface: {layers}"
        raise _refusal(hf, reason)
    for call in calls:
        found = call.num_kv_heads, call.head_dim
        if found != (hf.num_key_value_heads, hf.head_dim):
            raise _refusal(
                hf,
                f"layer {call.layer} has {found[0]} key/value heads of {found[1]}, "
                f"but its configuration says {hf.num_key_value_heads} of {hf.head_dim}",
            )
        kinds = getattr(text, "layer_types", None)
        if kinds is not None and (kinds[call.layer] == "sliding_attention") != (call.window is not None):
            raise _refusal(hf, f"layer {call.layer} is of type {kinds[call.layer]}, but its window is {call.window}")


# -- positions -----------------------------------------------------------------------------------------------


def _fix_rotary(body: nn.Module, max_model_len: int) -> None:
    """Rotary tables that grow with the longest position of a step stay as they are for the longest that is served.

    Otherwise a request would turn by the lengths of the requests beside it.
    """
    for module in body.modules():
        kinds = getattr(module, "rope_type", None)
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer_type, kind in by_layer.items():
            if not isinstance(kind, str) or not ("dynamic" in kind or kind == "longrope"):
                continue
            last = torch.tensor([[max_model_len - 1]])
            module(torch.zeros(1, 1, 1), last, **({} if layer_type is None else {"layer_type": layer_type}))
            if isinstance(kinds, dict):
                kinds[layer_type] = _UNSTRETCHED
            else:
                setattr(module, "rope_type", _UNSTRETCHED)  # noqa: B010  (to mypy an attribute of a module is a tensor)


# -- names ---------------------------------------------------------------------------------------------------


class _Naming:
    """From the names of a checkpoint to those of the class in transformers, by transformers' own table of changes."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        changes = get_model_conversion_mapping(model)
        self._converters = [change for change in changes if isinstance(change, WeightConverter)]
        self._renamings = [change for change in changes if not isinstance(change, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._known = dict.fromkeys(model.state_dict(keep_vars=True), True)
        self._ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]

    def rename(self, name: str) -> str | None:
        """A name in the model, or None for a tensor that transformers passes over too."""
        from transformers.core_model_loading import rename_source_key

        found, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._known)
        if pattern is not None:
            return self._part_of_expert(name, found, pattern)
        if found not in self._known and any(ignored.search(found) for ignored in self._ignored):
            return None
        return found

    def _part_of_expert(self, name: str, target: str, pattern: str) -> str:
        """The name of one expert's weight, which transformers would join with the others'."""
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        layer, _, joined = target.rpartition(".")
        number = re.search(r"\.experts\.(\d+)\.", name)
        parts = EXPERT_PARTS.get(joined, ())
        steps = [type(step).__name__ for step in converter.operations]
        if number is None or len(parts) != len(converter.source_patterns) or steps != _EXPERT_STEPS[: len(parts)]:
            raise ModelLoadError(
                f"tensor {name} would have to be converted ({', '.join(steps)}), which works for the weights of experts only"
            )
        return f"{layer}.{number[1]}.{parts[converter.source_patterns.index(pattern)]}.weight"


_EXPERT_STEPS = ["MergeModulelist", "Concatenate"]
"""How transformers joins the weights of experts: their gates and ups one below the other, or their downs alone."""
