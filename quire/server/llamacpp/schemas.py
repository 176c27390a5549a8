"""Bodies of the requests as clients of llama.cpp send them; the meaning of each field is in its server's README."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from quire.server.fields import Int64, TokenId


class MultimodalPrompt(Struct):
    """A prompt with media; only its text can be served."""

    prompt_string: str
    multimodal_data: list[str] | None = None


Prompt = (
    str | list[str | TokenId | list[str | TokenId] | MultimodalPrompt] | MultimodalPrompt
)  # A list with an integer in it is one prompt, another list is several.


class CompletionRequest(Struct, kw_only=True):
    """`POST /completion` and `POST /completions`."""

    model: Any = None
    """Ignored, as in llama.cpp."""
    prompt: Prompt | None = None
    stream: bool | None = None
    n_predict: Int64 | None = None
    max_tokens: Int64 | None = None
    n_cmpl: Int64 | None = None
    stop: list[str] | str | None = None
    seed: Int64 | None = None
    ignore_eos: bool | None = None
    logit_bias: list[tuple[TokenId | str, float | bool]] | dict[str, float | bool] | None = None
    cache_prompt: bool | None = None
    # What the response holds.
    n_probs: Int64 | None = None
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    response_fields: list[str] | None = None
    # Samplers that the engine has.
    samplers: list[str] | str | None = None
    temperature: float | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Int64 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # Accepted where they change nothing: see `params.NEUTRAL`.
    min_keep: Int64 | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: Int64 | None = None
    dry_penalty_last_n: Int64 | None = None
    dry_sequence_breakers: list[str] | None = None
    mirostat: Int64 | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    top_n_sigma: float | None = None
    n_indent: Int64 | None = None
    n_keep: Int64 | None = None
    n_discard: Int64 | None = None
    t_max_predict_ms: Int64 | None = None
    id_slot: Int64 | None = None
    grammar: str | None = None
    json_schema: Any = None
    lora: list[Any] | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """`POST /embedding` and `POST /embeddings`."""

    model: Any = None
    """Ignored, as in llama.cpp."""
    content: Prompt | None = None
    input: Prompt | None = None
    """The same, by OpenAI's name."""
    embd_normalize: Int64 | None = None
    encoding_format: str | None = None


class MessagesRequest(Struct, kw_only=True):
    """`POST /apply-template` and `POST /v1/chat/completions/input_tokens`."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
