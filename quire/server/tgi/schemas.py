"""Bodies of the requests as Text Generation Inference's clients send them; null means: not given."""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct

from quire.server.fields import Int64


class Parameters(Struct, kw_only=True):
    """`parameters`: how to generate and what to show. `params.py` says what each may be."""

    best_of: Int64 | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: Int64 | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: Int64 | None = None
    watermark: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: Int64 | None = None
    top_n_tokens: Int64 | None = None
    # Known, and refused until they exist.
    grammar: Any = None
    adapter_id: str | None = None


class GenerateRequest(Struct, kw_only=True):
    """`POST /generate`, `/generate_stream` and `/`; only the last reads `stream`."""

    inputs: str | None = None
    parameters: Parameters | None = None
    stream: bool | None = None


class ChatRequest(Struct, kw_only=True):
    """What `/chat_tokenize` and chats in `/vertex` read of a chat request; the rest of it is for other routes."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    seed: Int64 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class VertexRequest(Struct, kw_only=True):
    """`POST /vertex`: each instance is a GenerateRequest, or a ChatRequest (with `messages`)."""

    instances: list[Raw] | None = None


class InstanceKind(Struct, kw_only=True):
    """What tells the two kinds of instances apart."""

    messages: Any = None
