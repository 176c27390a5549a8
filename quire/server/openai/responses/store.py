"""`ResponseStore`: the last responses of this process, so that a conversation can go on from one of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from quire.errors import InvalidRequestError, NotFoundError, describe
from quire.server.openai.responses.items import Item

MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response and what it answered, as JSON: small, and its size is known."""

    id: str
    response: bytes
    input_items: bytes
    previous_id: str | None

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return len(self.response) + len(self.input_items)

    def items(self) -> list[Item]:
        """What was said, input and output."""
        said: list[Item] = msgspec.json.decode(self.input_items)
        return said + msgspec.json.decode(self.response)["output"]


class ResponseStore:
    """Bounded by number and by bytes; what was used longest ago goes first. A tenant finds its own responses only."""

    def __init__(self, max_responses: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._responses: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        """By tenant and id."""

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, response: dict[str, Any], input_items: list[Item], tenant: str = "") -> None:
        """Keep a finished response and the items that it answered."""
        stored = StoredResponse(
            response["id"],
            msgspec.json.encode(response),
            msgspec.json.encode(input_items),
            response["previous_response_id"],
        )
        self._responses[tenant, stored.id] = stored
        self._num_bytes += stored.num_bytes
        while len(self._responses) > self._max_responses or self._num_bytes > self._max_bytes:
            _, oldest = self._responses.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

    def get(self, response_id: str, tenant: str = "") -> StoredResponse:
        """One response; raises NotFoundError."""
        stored = self._responses.get((tenant, response_id))
        if stored is None:
            raise NotFoundError(
                f"There is no stored response {describe(response_id)}", parameter="response_id"
            )
        return stored

    def delete(self, response_id: str, tenant: str = "") -> None:
        """Forget one response; raises NotFoundError."""
        self._num_bytes -= self.get(response_id, tenant).num_bytes
        del self._responses[tenant, response_id]

    def conversation(self, response_id: str | None, tenant: str = "") -> list[Item]:
        """Everything said up to and including a response. Raises InvalidRequestError where a part of it is gone."""
        chain: list[StoredResponse] = []
        while response_id is not None:
            stored = self._responses.get((tenant, response_id))
            if stored is None:
                raise self._missing(response_id, is_ancestor=bool(chain))
            # Ancestors come last, so they outlive what needs them.
            self._responses.move_to_end((tenant, response_id))
            chain.append(stored)
            response_id = stored.previous_id
        return [item for stored in reversed(chain) for item in stored.items()]

    def _missing(self, response_id: str, *, is_ancestor: bool) -> InvalidRequestError:
        what = "an earlier response of this conversation" if is_ancestor else "previous_response_id"
        return InvalidRequestError(
            f"{what} must be stored here, but {describe(response_id)} is not: it is unknown, was deleted, or gave way "
            f"to newer ones (the server keeps {self._max_responses}, --max-stored-responses)",
            parameter="previous_response_id",
            value=response_id,
        )
