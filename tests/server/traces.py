"""A tracer that keeps the spans of exchanges."""

from __future__ import annotations

from quire.server.exchange import Exchange
from quire.server.tracing.spans import Span, describe_exchange


class Traces:
    """See `Tracer`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.parents: list[str] = []
        """The `traceparent` of each."""

    def export(self, exchange: Exchange, seconds: float) -> None:
        """Keep what would be sent."""
        self.spans.append(describe_exchange(exchange, seconds))
        self.parents.append(exchange.header(b"traceparent"))

    def shutdown(self) -> None:
        """Nothing is left."""
