"""From the bytes of an HTTP request to a typed object. Everything a body can do wrong becomes
InvalidRequestError here; what to do about fields that nobody knows is `unknown_fields.py`'s.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from quire.errors import BodyTooLargeError, InvalidRequestError, MalformedBodyError, describe
from quire.server.headers import header
from quire.server.unknown_fields import note_unknown_fields

_Body = TypeVar("_Body", bound=msgspec.Struct)

_Result = TypeVar("_Result")

_BODY = "quire.body"
"""Where the scope keeps a body that was read."""
_any_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_strict_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


class _AnyObject(msgspec.Struct):
    """A JSON object of which nothing is known."""


async def read_body(
    request: Request, schema: type[_Body], max_bytes: int, *, any_content_type: bool = False
) -> _Body:
    """The request's JSON body as `schema`; null counts as not given, unknown fields are noted on the request.

    Raises BodyTooLargeError or InvalidRequestError; the latter for unknown fields too, where the server is strict.
    """
    body = await (_read_bytes if any_content_type else _checked_bytes)(request, max_bytes)
    request.scope.pop(_BODY, None)
    try:
        return _strict_decoder(schema).decode(body)
    except (ValueError, RecursionError):  # decode again: to say what is wrong, or that it is only a name
        parsed = decode_body(body, schema)
    note_unknown_fields(request, _keys(body) - set(schema.__struct_encode_fields__))
    return parsed


async def body_keys(request: Request, max_bytes: int) -> Set[str]:
    """The fields of the JSON object that the request brings, for a route that serves several kinds of them.

    `read_body` may follow. Raises BodyTooLargeError or InvalidRequestError.
    """
    body = request.scope[_BODY] = await _checked_bytes(request, max_bytes)
    decode_body(body, _AnyObject)
    return _keys(body)


def decode_body(body: bytes, schema: type[_Body]) -> _Body:
    """Decode JSON into `schema`, without a look at unknown fields; raises InvalidRequestError that names the place."""
    decoder = _decoders.get(schema)
    if decoder is None:
        decoder = _decoders[schema] = msgspec.json.Decoder(schema)
    return _decode(body, decoder)


def _decode(body: bytes, decoder: msgspec.json.Decoder[_Result]) -> _Result:
    """What the body holds; everything that can be wrong with it becomes InvalidRequestError."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except RecursionError:
        raise MalformedBodyError("The request body is nested too deeply") from None
    except UnicodeDecodeError:
        raise MalformedBodyError("The request body is not valid UTF-8") from None
    except ValueError as error:  # msgspec.DecodeError and kin
        reason = str(error).removeprefix("JSON is malformed: ")
        raise MalformedBodyError(f"The request body is not valid JSON: {reason}") from None


def convert_at(value: Any, schema: type[_Body], where: str) -> _Body:
    """A part of a body, decoded already, as `schema`; raises InvalidRequestError that names the place below `where`."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error), where) from None


def _strict_decoder(schema: type[_Body]) -> msgspec.json.Decoder[_Body]:
    """Fails on an unknown field of the object itself, not on those of objects in it; costs nothing when there is none."""
    decoder = _strict_decoders.get(schema)
    if decoder is None:
        strict = msgspec.defstruct(
            schema.__name__, [], bases=(schema,), module=schema.__module__, forbid_unknown_fields=True
        )
        decoder = _strict_decoders[schema] = msgspec.json.Decoder(strict)
    return decoder


def _keys(body: bytes) -> Set[str]:
    return _decode(body, _any_object).keys()


async def _checked_bytes(request: Request, max_bytes: int) -> bytes:
    """The body, which `body_keys` may have read already."""
    body: bytes | None = request.scope.get(_BODY)
    if body is not None:
        return body
    _check_content_type(request)
    return await _read_bytes(request, max_bytes)


def _check_content_type(request: Request) -> None:
    stated = header(request, b"content-type")
    if stated is None:
        return
    media_type = stated.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise InvalidRequestError(
            f"Content-Type must be application/json, got {describe(media_type)}", parameter="Content-Type"
        )


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    stated = header(request, b"content-length") or ""
    if stated.isdigit() and int(stated) > max_bytes:
        raise _too_large(max_bytes)
    pieces, num_bytes = [], 0
    with request.app.state.context.lifecycle.arriving():
        async for piece in request.stream():
            num_bytes += len(piece)
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            pieces.append(piece)
    return b"".join(pieces)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The request body must be at most {max_bytes} bytes (--max-body-bytes)")


def _wrong_field(reason: str, where: str = "") -> InvalidRequestError:
    """msgspec says "Expected `int | null`, got `str` - at `$.n`"; say "n: expected integer, got string"."""
    problem, _, place = reason.partition(" - at `")
    below = place.rstrip("`").removeprefix("key in ").removeprefix("$")
    parameter = f"{where}{below}".removeprefix(".") or None
    if parameter is None:
        return InvalidRequestError(f"The request body must be a JSON object: {problem}")
    problem = problem.replace(" | null", "")
    return InvalidRequestError(f"{parameter}: {problem[:1].lower()}{problem[1:]}", parameter=parameter)
