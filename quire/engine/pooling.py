"""What one request for a vector asks of the core, and what is made of the vector that comes back."""

from __future__ import annotations

from typing import Literal

import numpy as np

from quire.config.types import ModelConfig, PoolingConfig
from quire.errors import InvalidRequestError, NotSupportedError, RequestFailedError, wrong_value
from quire.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from quire.pooling_params import Pooling, PoolingParams
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import Tokenizer

PoolingTask = Literal["embed", "classify"]


def pooling_request(
    config: PoolingConfig | None, params: PoolingParams | None, task: PoolingTask, hidden_size: int
) -> SamplingParams:
    """What the core is asked for: a request that generates nothing and ends with a vector.

    A classifier's vector holds its numbers as they are; see `classified`. Raises InvalidRequestError where the model does not do
    it, or does not have vectors of that length.
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


def own_task(config: PoolingConfig | None) -> PoolingTask:
    """What a model does with a prompt."""
    return "classify" if config is not None and config.num_labels else "embed"


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


def encode_pair(
    model: ModelConfig, tokenizer: Tokenizer, first: object, second: object, params: PoolingParams | None = None
) -> list[int] | dict[str, list[int]]:
    """Two texts as the one prompt that a cross-encoder reads. Raises InvalidRequestError, NotSupportedError."""
    if model.pooling is not None and model.pooling.num_labels != 1:
        raise NotSupportedError("this model is a classifier of single texts: it scores no pairs", parameter="model")
    if not isinstance(first, str) or not isinstance(second, str):
        raise InvalidRequestError("a cross-encoder scores two texts, got token ids", parameter="prompt")
    keep = None if params is None else params.truncate_prompt_tokens
    ids, segments = tokenizer.encode_pair(first, second, model.max_model_len if keep == -1 else keep)
    if model.pooling is None or not model.pooling.has_segments:
        return ids
    return {"prompt_token_ids": ids, "token_type_ids": segments}


# -- vectors -------------------------------------------------------------------------------------------------


def vector_of(output: RequestOutput) -> bytes:
    """The vector that a request ended with, little-endian float32; raises RequestFailedError for one without."""
    if output.pooled is None:
        raise RequestFailedError(output.error or f"request {output.request_id} ended without a vector")
    return output.pooled


def pooling_output(output: RequestOutput) -> PoolingRequestOutput:
    """The vector as a tensor, as vLLM gives it. Raises RequestFailedError."""
    import torch

    data = torch.tensor(numbers_of(vector_of(output)))
    return PoolingRequestOutput(
        output.request_id, PoolingOutput(data), output.prompt_token_ids, num_cached_tokens=output.num_cached_tokens
    )


def numbers_of(pooled: bytes) -> list[float]:
    """A vector as it crosses the engine's border, as numbers."""
    return [float(number) for number in np.frombuffer(pooled, dtype="<f4")]


def cosine(first: bytes, second: bytes) -> float:
    """Cosine of the angle between two vectors, 0 where one has no length."""
    a, b = (np.frombuffer(each, dtype="<f4").astype(np.float64) for each in (first, second))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0 else 0.0


def classified(config: PoolingConfig | None, params: PoolingParams | None, pooled: bytes) -> list[float]:
    """A classifier's numbers, as probabilities unless the model or the request wants them as they are."""
    activates = None if params is None else params.activates
    if activates is None:
        activates = config is None or config.normalize
    return probabilities(pooled) if activates else numbers_of(pooled)


def probabilities(pooled: bytes) -> list[float]:
    """A classifier's numbers as probabilities: the logistic function of a single one, else softmax."""
    numbers = np.frombuffer(pooled, dtype="<f4").astype(np.float64)
    if len(numbers) == 1:
        return [float(1.0 / (1.0 + np.exp(-numbers[0])))]
    weights = np.exp(numbers - numbers.max())
    return [float(weight) for weight in weights / weights.sum()]
