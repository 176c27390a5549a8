"""Which models give vectors instead of text, and how: from their files and the user's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quire.config.engine_args import EngineArgs
from quire.config.hf import num_labels
from quire.config.sentence_transformers import SentencePipeline, read_sentence_pipeline
from quire.config.types import HFConfig, PoolingConfig
from quire.errors import ConfigError, describe
from quire.models import ModelRegistry
from quire.pooling_params import POOLING_KINDS, PoolingKind

_CLASSIFIER = "ForSequenceClassification"


def find_pooling(args: EngineArgs, hf: HFConfig, path: Path) -> PoolingConfig | None:
    """How the model pools; None: it generates text.

    With `runner=auto` encoders pool, checkpoints without an output head do, and those that come with a sentence-transformers
    pipeline. Raises ConfigError for options that the model cannot follow.
    """
    is_encoder, is_headless = ModelRegistry.is_encoder(hf.architecture), ModelRegistry.is_headless(hf.architecture)
    wanted = _wanted_runner(args)
    if wanted == "generate":
        if is_encoder or is_headless:
            what = "is an encoder" if is_encoder else "has no output head"
            raise ConfigError(f"runner must be pooling for {hf.architecture}, which {what}, got generate")
        return None
    pipeline = read_sentence_pipeline(path) or _pipeline_of_gguf(hf)
    if wanted == "auto" and not (is_encoder or is_headless or pipeline):
        return None
    return _configure(args, hf, pipeline, is_encoder=is_encoder)


def _pipeline_of_gguf(hf: HFConfig) -> SentencePipeline | None:
    """What a GGUF file says of its model's vectors, which llama.cpp normalises; None where it says nothing."""
    kind = hf.fields.get("gguf_pooling")
    return None if kind is None else SentencePipeline(kind, normalize=True, max_length=None, truncate_dim=None)


def served_length(path: Path) -> int | None:
    """Tokens that a sentence-transformers pipeline was meant for; None: no pipeline, or it does not say."""
    pipeline = read_sentence_pipeline(path)
    return None if pipeline is None else pipeline.max_length


def _wanted_runner(args: EngineArgs) -> str:
    """auto, generate or pooling, from the three options that may say so."""
    by_option = {
        "runner": args.runner,
        "convert": {"auto": "auto", "none": "auto"}.get(args.convert, "pooling"),
        "task": {"auto": "auto", "generate": "generate"}.get(args.task, "pooling"),
    }
    wanted = {name: runner for name, runner in by_option.items() if runner != "auto"}
    if len(set(wanted.values())) > 1:
        given = ", ".join(f"{name}={getattr(args, name)}" for name in wanted)
        raise ConfigError(f"runner, convert and task must agree, got {given}")
    return next(iter(wanted.values()), "auto")


def _configure(
    args: EngineArgs, hf: HFConfig, pipeline: SentencePipeline | None, *, is_encoder: bool
) -> PoolingConfig:
    classifies = hf.architecture.endswith(_CLASSIFIER)
    if (args.convert == "classify" or args.task == "classify") and not classifies:
        raise ConfigError(f"only a model {_CLASSIFIER} classifies, got {hf.architecture}")
    kind: PoolingKind = "cls" if is_encoder else "last"
    normalize = _becomes_probabilities(hf) if classifies else True
    if pipeline is not None and not classifies:
        kind, normalize = pipeline.kind, pipeline.normalize
    kind, normalize = _with_overrides(args.pooler_config or {}, kind, normalize)
    if classifies and kind != "cls":
        raise ConfigError(f"pooler_config: pooling_type must be CLS for {hf.architecture}, got {kind.upper()}")
    lengths = hf.fields.get("matryoshka_dimensions") or ()
    allows = bool(lengths) or hf.fields.flag("is_matryoshka", False)
    return PoolingConfig(
        kind=kind,
        normalize=normalize,
        is_encoder=is_encoder,
        allows_dimensions=allows or (pipeline is not None and pipeline.truncate_dim is not None),
        dimensions=tuple(lengths),
        num_labels=num_labels(hf) if classifies else 0,
        has_segments=is_encoder and hf.model_type == "bert" and hf.fields.positive("type_vocab_size", default=2) > 1,
    )


def _becomes_probabilities(hf: HFConfig) -> bool:
    """Whether a cross-encoder of sentence-transformers gives probabilities: its config.json may name another function."""
    stated = hf.fields.get("sentence_transformers")
    function = stated.get("activation_fn") if isinstance(stated, dict) else None
    function = function or hf.fields.get("sbert_ce_default_activation_function")
    name = "Sigmoid" if function is None else str(function).rpartition(".")[2]
    if name not in ("Sigmoid", "Identity"):
        raise ConfigError(f"config.json: the activation of a classifier must be Sigmoid or Identity, got {describe(function)}")
    return name == "Sigmoid"


def _with_overrides(given: dict[str, Any], kind: PoolingKind, normalize: bool) -> tuple[PoolingKind, bool]:
    """The user's choice, in vLLM's spellings."""
    for name, value in given.items():
        if name in ("pooling_type", "seq_pooling_type"):
            chosen = next((known for known in POOLING_KINDS if known == str(value).lower()), None)
            if chosen is None:
                raise ConfigError(f"pooler_config: {name} must be LAST, MEAN or CLS, got {describe(value)}")
            kind = chosen
        elif name in ("normalize", "use_activation"):
            if not isinstance(value, bool):
                raise ConfigError(f"pooler_config: {name} must be true or false, got {describe(value)}")
            normalize = value
        else:
            raise ConfigError(f"pooler_config may have pooling_type, normalize and use_activation, got {describe(name)}")
    return kind, normalize
