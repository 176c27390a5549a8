"""Bodies of the requests as clients send them. Every field may be null, which means: not given; unknown ones
are ignored.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from quire.server.fields import Int64, TokenId


class StreamOptions(Struct):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(Struct, kw_only=True):
    """What completions and chat completions have in common; the meaning of each field is SamplingParams'."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int64 | None = None
    best_of: Int64 | None = None
    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: Int64 | None = None
    truncate_prompt_tokens: Int64 | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None
    priority: Int64 | None = None
    cache_salt: str | None = None
    # Known, and refused until they exist.
    use_beam_search: bool | None = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | TokenId | list[TokenId]] | None = None
    logprobs: Int64 | None = None
    suffix: str | None = None
    prompt_embeds: Any = None


class ResponseFormat(Struct):
    """The kind of output that a chat request asks for."""

    type: str | None = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
