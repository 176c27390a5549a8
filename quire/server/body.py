"""From the bytes of an HTTP request to a typed object. Everything a body can do wrong becomes
InvalidRequestError here.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from quire.errors import BodyTooLargeError, InvalidRequestError, describe
from quire.log import get_logger

_Body = TypeVar("_Body", bound=msgspec.Struct)

_log = get_logger(__name__)
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


async def read_body(
    request: Request, schema: type[_Body], max_bytes: int, *, any_content_type: bool = False
) -> _Body:
    """The request's JSON body as `schema`; null counts as not given, unknown fields are ignored.

    Raises BodyTooLargeError or InvalidRequestError.
    """
    if not any_content_type:
        _check_content_type(request)
    body = await _read_bytes(request, max_bytes)
    parsed = decode_body(body, schema)
    if _log.isEnabledFor(logging.DEBUG):
        _log_unknown_fields(body, schema)
    return parsed


def decode_body(body: bytes, schema: type[_Body]) -> _Body:
    """Decode JSON into `schema`; raises InvalidRequestError that names the place."""
    decoder = _decoders.get(schema)
    if decoder is None:
        decoder = _decoders[schema] = msgspec.json.Decoder(schema)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except RecursionError:
        raise InvalidRequestError("The request body is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidRequestError("The request body is not valid UTF-8") from None
    except ValueError as error:  # msgspec.DecodeError and kin
        reason = str(error).removeprefix("JSON is malformed: ")
        raise InvalidRequestError(f"The request body is not valid JSON: {reason}") from None


def _check_content_type(request: Request) -> None:
    stated = request.headers.get("content-type")
    if stated is None:
        return
    media_type = stated.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise InvalidRequestError(
            f"Content-Type must be application/json, got {describe(media_type)}", parameter="Content-Type"
        )


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_bytes:
        raise _too_large(max_bytes)
    pieces, num_bytes = [], 0
    async for piece in request.stream():
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The request body must be at most {max_bytes} bytes (--max-body-bytes)")


def _wrong_field(reason: str) -> InvalidRequestError:
    """msgspec says "Expected `int | null`, got `str` - at `$.n`"; say "n: expected integer, got string"."""
    problem, _, place = reason.partition(" - at `")
    parameter = place.rstrip("`").removeprefix("key in ").removeprefix("$").removeprefix(".") or None
    if parameter is None:
        return InvalidRequestError(f"The request body must be a JSON object: {problem}")
    problem = problem.replace(" | null", "")
    return InvalidRequestError(f"{parameter}: {problem[:1].lower()}{problem[1:]}", parameter=parameter)


def _log_unknown_fields(body: bytes, schema: type[msgspec.Struct]) -> None:
    unknown = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).keys() - set(schema.__struct_fields__)
    if unknown:
        _log.debug("ignored unknown fields: %s", describe(sorted(unknown)))
