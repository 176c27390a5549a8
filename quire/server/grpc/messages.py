"""The messages of `quire.proto` as classes, made from its compiled description; nothing else imports protobuf.

Generated code would be bound to the protobuf release that generated it; a description is read by any.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "quire.v1"


def _load() -> Any:
    """A pool of our own, so that a client's generated code may be in the same process."""
    compiled = (files("quire.server.grpc") / "quire.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_pool = _load()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


GenerateRequest = _message("GenerateRequest")
GenerateResponse = _message("GenerateResponse")
HealthRequest = _message("HealthRequest")
HealthResponse = _message("HealthResponse")
InfoRequest = _message("InfoRequest")
InfoResponse = _message("InfoResponse")
Model = _message("Model")
PositionLogprobs = _message("PositionLogprobs")
SamplingParams = _message("SamplingParams")
Sequence = _message("Sequence")
TokenLogprob = _message("TokenLogprob")
Usage = _message("Usage")

FINISH_REASONS = {
    name.removeprefix("FINISH_REASON_").lower(): value.number
    for name, value in _pool.FindEnumTypeByName(f"{PACKAGE}.FinishReason").values_by_name.items()
}
"""Quire's name of a finish reason -> its number."""
