"""Vectors instead of text: which models give them and how, and what one request for a vector asks of the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from quire.config.engine_args import EngineArgs
from quire.config.hf import num_labels
from quire.config.sentence_transformers import SentencePipeline, read_sentence_pipeline
from quire.config.types import HFConfig, ModelConfig, PoolingConfig
from quire.errors import ConfigError, InvalidRequestError, NotSupportedError, describe, wrong_value
from quire.models import ModelRegistry
from quire.pooling_params import POOLING_KINDS, Pooling, PoolingKind, PoolingParams
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import Tokenizer

PoolingTask = Literal["embed", "classify"]

_POOLING_TASKS = ("embed", "embedding", "score", "classify", "encode")
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
    pipeline = read_sentence_pipeline(path)
    if wanted == "auto" and not (is_encoder or is_headless or pipeline):
        return None
    return _configure(args, hf, pipeline, is_encoder=is_encoder)


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
    normalize = not classifies
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


# -- requests ------------------------------------------------------------------------------------------------


def pooling_request(
    config: PoolingConfig | None, params: PoolingParams | None, task: PoolingTask, hidden_size: int
) -> SamplingParams:
    """What the core is asked for: a request that generates nothing and ends with a vector.

    A classifier's vector holds its numbers as they are. Raises InvalidRequestError where the model does not do it, or does not
    have vectors of that length.
    """
    params = PoolingParams() if params is None else params
    if not isinstance(params, PoolingParams):
        raise wrong_value("pooling_params", "PoolingParams", params)
    config = _check_task(config, task)
    classifies = task == "classify"
    _check_dimensions(config, params.dimensions, hidden_size)
    normalize = config.normalize if params.activates is None else params.activates
    pooling = Pooling(config.kind, normalize and not classifies, params.dimensions, classifies)
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        seed=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        truncate_prompt_tokens=params.truncate_prompt_tokens,
        pooling=pooling,
    )


def _check_task(config: PoolingConfig | None, task: PoolingTask) -> PoolingConfig:
    if config is None:
        raise NotSupportedError(
            "this model generates text: to have vectors of it, start it with runner=pooling (--runner pooling), or with "
            "convert=embed",
            parameter="model",
        )
    if task == "embed" and config.num_labels:
        raise NotSupportedError("this model is a classifier, and gives no embeddings", parameter="model")
    if task == "classify" and not config.num_labels:
        raise NotSupportedError("this model gives embeddings, and is no classifier", parameter="model")
    return config


def _check_dimensions(config: PoolingConfig, dimensions: int | None, hidden_size: int) -> None:
    if dimensions is None:
        return
    if not config.allows_dimensions:
        raise InvalidRequestError(
            "dimensions cannot be chosen: the model was not trained for shorter vectors (hf_overrides "
            '{"is_matryoshka": true} says that it was)',
            parameter="dimensions",
            value=dimensions,
        )
    if config.dimensions and dimensions not in config.dimensions:
        raise wrong_value("dimensions", f"one of {', '.join(map(str, config.dimensions))}", dimensions)
    if not 1 <= dimensions <= hidden_size:
        raise wrong_value("dimensions", f"an integer in [1, {hidden_size}]", dimensions)


def encode_pair(model: ModelConfig, tokenizer: Tokenizer, first: object, second: object) -> list[int]:
    """The token ids of two texts as the one prompt that a cross-encoder reads. Raises InvalidRequestError, NotSupportedError."""
    if model.pooling is not None and model.pooling.num_labels != 1:
        raise NotSupportedError("this model is a classifier of single texts: it scores no pairs", parameter="model")
    if model.pooling is not None and model.pooling.has_segments:
        raise NotSupportedError(
            f"pairs of texts are not supported yet for {model.hf.architecture}, which tells them apart by segments",
            parameter="model",
        )
    if not isinstance(first, str) or not isinstance(second, str):
        raise InvalidRequestError("a cross-encoder scores two texts, got token ids", parameter="prompt")
    return tokenizer.encode_pair(first, second)


# -- vectors -------------------------------------------------------------------------------------------------


def numbers_of(pooled: bytes) -> list[float]:
    """A vector as it crosses the engine's border, as numbers."""
    return [float(number) for number in np.frombuffer(pooled, dtype="<f4")]


def cosine(first: bytes, second: bytes) -> float:
    """Cosine of the angle between two vectors, 0 where one has no length."""
    a, b = (np.frombuffer(each, dtype="<f4").astype(np.float64) for each in (first, second))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0 else 0.0


def probabilities(pooled: bytes) -> list[float]:
    """A classifier's numbers as probabilities: the logistic function of a single one, else softmax."""
    numbers = np.frombuffer(pooled, dtype="<f4").astype(np.float64)
    if len(numbers) == 1:
        return [float(1.0 / (1.0 + np.exp(-numbers[0])))]
    weights = np.exp(numbers - numbers.max())
    return [float(weight) for weight in weights / weights.sum()]
