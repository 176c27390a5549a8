"""Models of transformers on Quire's paged cache, scheduler, sampler and linear layers: for architectures without a file here.

Attention goes through transformers' attention interface, where a function of ours stores keys and values and reads the batch from
the forward context. Everything between the layers is torch as transformers has it, op by op.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quire.config.types import HFConfig, ModelConfig
from quire.errors import UnsupportedModelError
from quire.layers.rows_alone import RowsAlone, rows_alone
from quire.models.transformers_backend.attention import (
    ATTENTION,
    check_calls,
    register_attention,
    watched_attention,
)
from quire.models.transformers_backend.classes import find_class, load_config
from quire.models.transformers_backend.layers import parameters_on_meta, use_quire_layers
from quire.models.transformers_backend.naming import Naming

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
        self._naming = Naming(model)
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
        try:
            with watched_attention() as calls:
                self.compute_logits(self(ids, positions))
            check_calls(calls, self._hf, self._text)
        except UnsupportedModelError as error:
            raise _refusal(self._hf, str(error)) from None
        except Exception as error:
            reason = f"it does not run on Quire's layers: {type(error).__name__}: {error}"
            raise _refusal(self._hf, reason) from error

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
    register_attention()
    hf_config = load_config(config.path, config.hf.fields, config.trust_remote_code)
    model_class = find_class(config.path, config.hf.fields, config.trust_remote_code)
    hf_config._attn_implementation = ATTENTION
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
