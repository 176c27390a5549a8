"""Types of the fields that request bodies of several protocols have."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
