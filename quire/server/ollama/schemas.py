"""Bodies of Ollama's requests as clients send them. Every field may be null, which means: not given."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

Text = Annotated[str, Meta(max_length=2**25)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
KeepAlive = str | float
Image = str


class ModelRequest(Struct, kw_only=True):
    """What names a model: `model`, in older clients `name`."""

    model: str | None = None
    name: str | None = None


class AnswerRequest(ModelRequest, kw_only=True):
    """What generate and chat have in common."""

    options: dict[str, Any] | None = None
    format: Any = None
    stream: bool | None = None
    keep_alive: KeepAlive | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    shift: bool | None = None


class GenerateRequest(AnswerRequest, kw_only=True):
    """`POST /api/generate`."""

    prompt: Text | None = None
    suffix: str | None = None
    images: list[Image] | None = None
    system: Text | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[TokenId] | None = None


class ChatRequest(AnswerRequest, kw_only=True):
    """`POST /api/chat`."""

    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None


class EmbedRequest(ModelRequest, kw_only=True):
    """`POST /api/embed` and `POST /api/embeddings`."""

    input: str | list[str] | None = None
    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None
    truncate: bool | None = None
    dimensions: int | None = None


class ShowRequest(ModelRequest, kw_only=True):
    """`POST /api/show`."""

    verbose: bool | None = None


class PullRequest(ModelRequest, kw_only=True):
    """`POST /api/pull`."""

    stream: bool | None = None
    insecure: bool | None = None


class CopyRequest(Struct, kw_only=True):
    """`POST /api/copy`."""

    source: str | None = None
    destination: str | None = None


class CreateRequest(ModelRequest, kw_only=True, rename={"from_": "from"}):
    """`POST /api/create`: of all that it can say, only `from` means something here."""

    from_: str | None = None
    stream: bool | None = None
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None
    messages: list[Any] | None = None
    license: Any = None
    quantize: str | None = None
    modelfile: str | None = None

    def changes(self) -> list[str]:
        """Names of the fields that ask for more than a copy."""
        names = ("files", "adapters", "template", "system", "parameters", "messages", "license", "quantize", "modelfile")
        return [name for name in names if getattr(self, name)]
