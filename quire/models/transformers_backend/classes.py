"""Which class of transformers, or of a checkpoint's own code, runs an architecture; whether it can; and its configuration.

Code that comes with a checkpoint is looked for only where Quire and transformers have no class, and runs only with
trust_remote_code.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from quire.config.fields import Fields
from quire.config.hf import CONTEXT_FIELDS, architecture_of, read_fields, token_ids_of
from quire.config.quantization import read_quantization
from quire.config.types import HFConfig
from quire.errors import ModelLoadError, UnsupportedModelError

_ATTENDING = ("full_attention", "sliding_attention")
"""Types of layers that Quire's cache serves."""


def read_transformers_config(path: str | Path, overrides: dict[str, Any] | None, trust_remote_code: bool) -> HFConfig:
    """The configuration in folder `path` as transformers understands it. Imports transformers and torch.

    Raises UnsupportedModelError with the reason why the architecture cannot run, ModelLoadError for a damaged file.
    """
    fields = read_fields(path, overrides)
    architecture, model_type = architecture_of(fields)
    config = load_config(path, fields, trust_remote_code)
    model_class = find_class(path, fields, trust_remote_code)
    text = config.get_text_config(decoder=True)
    reason = _why_not(model_class, config, text)
    if reason is not None:
        raise UnsupportedModelError(
            f"architecture {architecture} is not supported: Quire has no file for it, "
            f"and it cannot run through transformers: {reason}"
        )
    heads = _count(text, fields, "num_attention_heads")
    max_position = _count(text, fields, *CONTEXT_FIELDS, default=2048)
    bos_token_id, eos_token_ids = token_ids_of(fields, Path(path))
    return HFConfig(
        architecture=architecture,
        model_type=model_type,
        vocab_size=_count(text, fields, "vocab_size"),
        hidden_size=_count(text, fields, "hidden_size"),
        intermediate_size=_count(text, fields, "intermediate_size", default=4 * _count(text, fields, "hidden_size")),
        num_hidden_layers=_count(text, fields, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_count(text, fields, "num_key_value_heads", default=heads),
        head_dim=_head_dim(text, fields, heads),
        max_position_embeddings=max_position,
        rope_scaling=_scaling(text, max_position),
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
        quantization=read_quantization(fields, Path(path)),
        fields=fields,
    )


def load_config(path: str | Path, fields: Fields, trust_remote_code: bool) -> Any:
    """A configuration object of transformers with the values of `fields`."""
    from transformers import CONFIG_MAPPING

    architecture, model_type = architecture_of(fields)
    own = _own_class(architecture)
    if own is not None and own.config_class is not None:
        config_class = own.config_class
    elif (reference := _remote(fields, "AutoConfig")) is not None:
        config_class = _remote_class(path, fields, reference, trust_remote_code)
    elif model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
    else:
        raise _unknown(architecture)
    try:
        return config_class.from_dict(fields.values)
    except Exception as error:  # each class checks its values in its own way
        raise ModelLoadError(f"{fields.path} is not a configuration of {architecture}: {error}") from error


def find_class(path: str | Path, fields: Fields, trust_remote_code: bool) -> Any:
    """The class of the architecture that `fields` name. Raises UnsupportedModelError where there is none that may run."""
    architecture, _ = architecture_of(fields)
    own = _own_class(architecture)
    if own is not None:
        return own
    reference = _remote(fields, "AutoModelForCausalLM")
    if reference is None:
        raise _unknown(architecture)
    return _remote_class(path, fields, reference, trust_remote_code)


def _own_class(architecture: str) -> Any:
    """The class that comes with transformers, or None."""
    import transformers

    found = getattr(transformers, architecture, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def _remote(fields: Fields, auto_class: str) -> str | None:
    """What a checkpoint says of its own code: "module.Class", or None."""
    names = fields.get("auto_map")
    reference = names.get(auto_class) if isinstance(names, dict) else None
    return reference if isinstance(reference, str) and "." in reference else None


def _remote_class(path: str | Path, fields: Fields, reference: str, trust_remote_code: bool) -> Any:
    architecture, _ = architecture_of(fields)
    if not trust_remote_code:
        named = (_remote(fields, name) for name in ("AutoModelForCausalLM", "AutoConfig"))
        files = dict.fromkeys(f"{name.rpartition('--')[2].split('.')[0]}.py" for name in named if name is not None)
        raise UnsupportedModelError(
            f"architecture {architecture} has a class neither in Quire nor in transformers; {path} brings code of its own, "
            f"{' and '.join(files)}, which runs only with --trust-remote-code (trust_remote_code=True)"
        )
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        return get_class_from_dynamic_module(reference, str(path), local_files_only="--" not in reference)
    except Exception as error:  # code of somebody else's
        raise ModelLoadError(f"{path}: {reference} cannot be loaded: {error}") from error


def _unknown(architecture: str) -> UnsupportedModelError:
    """An architecture that nobody has."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from quire.models import ModelRegistry

    known = {*ModelRegistry.get_supported_archs(), *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    near = difflib.get_close_matches(architecture, sorted(known), 3, cutoff=0.7)
    hint = f"; the nearest names: {', '.join(near)}" if near else ""
    return UnsupportedModelError(
        f"architecture {architecture} is not supported: it is neither in Quire (`quire models` lists what is) "
        f"nor in transformers {transformers.__version__}, where --model-impl auto and transformers look{hint}"
    )


def _why_not(model_class: Any, config: Any, text: Any) -> str | None:
    """Why a class cannot run on Quire's cache, as far as it can be told before it is loaded."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, and Quire runs decoders"
    if getattr(text, "add_cross_attention", False):
        return "it has cross-attention, and Quire keeps keys and values of a model's own tokens only"
    others = sorted(set(getattr(text, "layer_types", None) or ()) - set(_ATTENDING))
    if others:
        return f"it has layers of type {', '.join(others)}, and Quire keeps keys and values only, no other state"
    if getattr(model_class, "_is_stateful", False):
        return "it keeps a recurrent state, and Quire keeps keys and values only"
    if not _is_causal_lm(model_class):
        return "it is not a causal language model"
    if getattr(text, "num_kv_shared_layers", 0):
        return "some of its layers read the keys and values of others"
    if not getattr(model_class, "_supports_attention_backend", False):
        return "its class does not say (_supports_attention_backend) that it attends through transformers' attention interface"
    return None


def _is_causal_lm(model_class: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = model_class.__name__
    return name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith(("ForCausalLM", "LMHeadModel"))


def _count(text: Any, fields: Fields, *names: str, default: int | None = None) -> int:
    """An integer of the configuration object under one of its names, by the rules of `Fields.positive`."""
    values = {name: getattr(text, name, None) for name in names}
    return Fields(values, fields.path).positive(*names, default=default)


def _scaling(text: Any, max_position: int) -> dict[str, Any] | None:
    """What `quire.config.rope.context_length` needs to know of the rotary scaling, which transformers computes itself."""
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn") or not rope.get("factor"):
        return None
    original = rope.get("original_max_position_embeddings") or max_position
    return {"rope_type": rope["rope_type"], "factor": rope["factor"], "original_max_position_embeddings": original}


def _head_dim(text: Any, fields: Fields, num_heads: int) -> int:
    """Width of a key: the two parts of multi-head latent attention (2405.04434), or as the file says."""
    if getattr(text, "qk_nope_head_dim", None) and getattr(text, "qk_rope_head_dim", None):
        return int(text.qk_nope_head_dim + text.qk_rope_head_dim)
    return _count(text, fields, "head_dim", default=_count(text, fields, "hidden_size") // num_heads)
