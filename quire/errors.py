"""The exception tree: every error that a user can cause, or that a server must report, is one of these.

Servers map this tree to status codes in one place (`server/errors.py`); nothing else decides what an error means.
"""

from __future__ import annotations

_MAX_SHOWN_VALUE = 80


def describe(value: object) -> str:
    """`repr(value)` cut to a length that is safe to echo in an error message."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_VALUE else text[: _MAX_SHOWN_VALUE - 3] + "..."


class QuireError(Exception):
    """Root of all errors that Quire raises on purpose."""


class ConfigError(QuireError, ValueError):
    """A start-up option is wrong; raised before any memory is touched."""


class ModelLoadError(QuireError):
    """A checkpoint cannot be found, read or matched with its architecture."""


class UnsupportedModelError(ModelLoadError):
    """The checkpoint's architecture (or its format) is not one that Quire runs."""


class HubError(ModelLoadError):
    """The Hugging Face hub could not be reached or refused the model."""


class InvalidRequestError(QuireError, ValueError):
    """A request breaks a rule. `parameter` names the field, the message gives the value and what is allowed."""

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value


class PromptTooLongError(InvalidRequestError):
    """The prompt does not fit the model's context, or could never fit the KV cache.

    `num_tokens` is the prompt's length where it is known, `max_model_len` what prompt and output may have together.
    """

    def __init__(
        self,
        message: str,
        *,
        parameter: str | None = None,
        value: object = None,
        num_tokens: int | None = None,
        max_model_len: int | None = None,
    ) -> None:
        super().__init__(message, parameter=parameter, value=value)
        self.num_tokens = num_tokens
        self.max_model_len = max_model_len


class NotSupportedError(InvalidRequestError):
    """The request or option asks for something that exists elsewhere but not in Quire yet."""


class UnknownModelError(InvalidRequestError):
    """The request names a model that this server does not serve."""


class NotFoundError(InvalidRequestError):
    """The request names something stored that is not there."""


class BusyError(QuireError):
    """There is no room for the request now, and may be later; `retry_after_s` says when to try again, seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(BusyError):
    """Admission control refused the request: as many wait as may."""


class TenantQueueFullError(QueueFullError):
    """As many requests of this tenant wait as may; others are still admitted."""


class RequestTimeoutError(QuireError):
    """The request was not finished within its time limit; what it ran was aborted."""


class RequestFailedError(QuireError):
    """One accepted request failed inside the engine; the engine and the other requests go on."""


class EngineDeadError(QuireError):
    """The engine process is gone for good and the request cannot be served."""


class NotReadyError(QuireError):
    """Requests are taken, but none is computed for the moment: the engine is being started again, or hangs."""


class ServerCallError(QuireError):
    """A command asked a running server for something and did not get it."""


class WrongApiKeyError(QuireError):
    """The server asks for a key, and the HTTP request has none or another one."""


class AdminDisabledError(QuireError):
    """The HTTP request is for operators, and the server has no key by which it would know them."""


class ConflictError(QuireError):
    """What the server is doing right now does not allow what was asked; later it may."""


class ForbiddenError(QuireError):
    """The server does not answer such a request, whatever it asks for."""


class HeadTooLargeError(QuireError):
    """The request line and headers of an HTTP request are larger than the server accepts."""


class SlowClientError(QuireError):
    """An HTTP request did not arrive in time."""


class TooManyConnectionsError(QuireError):
    """The server holds as many connections as it may."""


class MalformedBodyError(InvalidRequestError):
    """The body of an HTTP request is not JSON at all; what is JSON of the wrong form is an InvalidRequestError."""


class BodyTooLargeError(InvalidRequestError):
    """The body of an HTTP request is larger than the server accepts."""


class ShuttingDownError(QuireError):
    """The server has been told to stop: it takes no new requests, and ends running ones when their time is up."""


def wrong_value(parameter: str, rule: str, value: object) -> InvalidRequestError:
    """The error for a value that breaks a rule: `temperature must be <rule>, got <value>`."""
    return InvalidRequestError(
        f"{parameter} must be {rule}, got {describe(value)}", parameter=parameter, value=value
    )
