"""What `LLM` offers of models that give vectors: embeddings, classes, and how well two texts fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire.engine.engine import LLMEngine
from quire.engine.inputs import PreparedRequest, Prompt
from quire.engine.pooling import (
    PoolingTask,
    classified,
    cosine,
    encode_pair,
    numbers_of,
    own_task,
    pooling_output,
    pooling_request,
    vector_of,
)
from quire.engine.prompt_lists import list_of_prompts
from quire.errors import InvalidRequestError, wrong_value
from quire.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from quire.pooling_params import PoolingParams

TASKS: tuple[PoolingTask, ...] = ("embed", "classify")


class VectorCalls:
    """The calls; `LLM` is their only heir."""

    llm_engine: LLMEngine

    def _prepare(self, prompts: Sequence[Prompt], params: Any) -> list[PreparedRequest]:
        raise NotImplementedError

    def _run(self, requests: list[PreparedRequest], use_tqdm: bool) -> list[RequestOutput]:
        raise NotImplementedError

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """An embedding of each prompt, in their order; a prompt is what `generate` takes.

        Raises InvalidRequestError before anything runs if any request is invalid, NotSupportedError for a model that generates.
        """
        return [
            EmbeddingRequestOutput(
                each.request_id,
                EmbeddingOutput(numbers_of(vector_of(each))),
                each.prompt_token_ids,
                num_cached_tokens=each.num_cached_tokens,
            )
            for each in self._pool(prompts, pooling_params, "embed", use_tqdm)
        ]

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        pooling_task: PoolingTask | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """The pooled numbers of each prompt as they are, in a tensor; of a classifier, before they become probabilities.

        `pooling_task`: embed or classify; None: what the model does. Raises as `embed` does.
        """
        if pooling_task is not None and pooling_task not in TASKS:
            raise wrong_value("pooling_task", f"one of {', '.join(TASKS)}", pooling_task)
        found = self._pool(prompts, pooling_params, pooling_task or self._own_task, use_tqdm)
        return [pooling_output(each) for each in found]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[ClassificationRequestOutput]:
        """The probabilities of a classifier's classes for each prompt. Raises as `embed` does."""
        pooling = self.llm_engine.config.model.pooling
        return [
            ClassificationRequestOutput(
                each.request_id,
                ClassificationOutput(classified(pooling, pooling_params, vector_of(each))),
                each.prompt_token_ids,
                num_cached_tokens=each.num_cached_tokens,
            )
            for each in self._pool(prompts, pooling_params, "classify", use_tqdm)
        ]

    def score(
        self,
        data_1: Prompt | Sequence[Prompt],
        data_2: Prompt | Sequence[Prompt],
        /,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[ScoringRequestOutput]:
        """How well each of `data_2` fits: one text against one or many, or many against as many.

        The cosine of two embeddings, or what a classifier with one class (a cross-encoder) says of both texts read together.
        Raises as `embed` does.
        """
        first, second = list_of_prompts(data_1, "data_1"), list_of_prompts(data_2, "data_2")
        if len(first) not in (1, len(second)):
            raise InvalidRequestError(
                f"data_1 must be one prompt, or as many as data_2 ({len(second)}), got {len(first)}", parameter="data_1"
            )
        if self._own_task == "classify":
            return self._score_together(first, second, pooling_params, use_tqdm)
        found = self._pool([*first, *second], pooling_params, "embed", use_tqdm)
        pairs = zip(found[: len(first)] * (len(second) // len(first)), found[len(first) :], strict=True)
        return [
            ScoringRequestOutput(
                b.request_id,
                ScoringOutput(cosine(vector_of(a), vector_of(b))),
                a.prompt_token_ids + b.prompt_token_ids,
                num_cached_tokens=(a.num_cached_tokens or 0) + (b.num_cached_tokens or 0),
            )
            for a, b in pairs
        ]

    def _score_together(
        self, first: list[Prompt], second: list[Prompt], params: PoolingParams | None, use_tqdm: bool
    ) -> list[ScoringRequestOutput]:
        pairs = zip(first * (len(second) // len(first)), second, strict=True)
        model, tokenizer = self.llm_engine.config.model, self.llm_engine.get_tokenizer()
        prompts: list[Prompt] = [encode_pair(model, tokenizer, *pair, params) for pair in pairs]
        return [
            ScoringRequestOutput(
                each.request_id,
                ScoringOutput(classified(model.pooling, params, vector_of(each))[0]),
                each.prompt_token_ids,
            )
            for each in self._pool(prompts, params, "classify", use_tqdm)
        ]

    @property
    def _own_task(self) -> PoolingTask:
        return own_task(self.llm_engine.config.model.pooling)

    def _pool(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: PoolingParams | None,
        task: PoolingTask,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        model = self.llm_engine.config.model
        request = pooling_request(model.pooling, params, task, model.hf.hidden_size)
        return self._run(self._prepare(list_of_prompts(prompts, "prompts"), request), use_tqdm)
