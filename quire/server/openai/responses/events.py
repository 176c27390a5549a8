"""The events of a streamed response: named, numbered, and equal in the end to the response that is not streamed."""

from __future__ import annotations

from typing import Any

from quire.server.errors import ErrorReport, encode_json
from quire.server.merge import Batch
from quire.server.openai.responses.items import message_part
from quire.server.openai.responses.job import ResponseJob


class EventRenderer:
    """See `Renderer`."""

    def __init__(self, job: ResponseJob) -> None:
        self._job = job
        self._num_events = 0
        self._place = {"item_id": job.message_id, "output_index": 0, "content_index": 0}
        self._text: list[str] = []
        self._logprobs: list[Any] = []
        self._finish_reason: str | None = None

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        frames = [] if self._num_events else self._begin()
        for _, output in batch:
            self._job.usage.add(0, output)
            for choice in output.outputs:
                logprobs = self._job.logprobs(choice)
                self._logprobs += logprobs
                self._finish_reason = choice.finish_reason
                if choice.text or logprobs:
                    self._text.append(choice.text)
                    frames.append(
                        self._event(
                            "response.output_text.delta", **self._place, delta=choice.text, logprobs=logprobs
                        )
                    )
        return b"".join(frames)

    def end(self) -> bytes:
        """See `Renderer.end`."""
        text = "".join(self._text)
        response = self._job.finished(text, self._logprobs, self._finish_reason)
        (message,) = response["output"]
        return b"".join(
            (
                self._event("response.output_text.done", **self._place, text=text, logprobs=self._logprobs),
                self._event("response.content_part.done", **self._place, part=message["content"][0]),
                self._event("response.output_item.done", output_index=0, item=message),
                self._event(f"response.{response['status']}", response=response),
            )
        )

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        error = {"code": "server_error", "message": report.message}
        return self._event(
            "error", code=report.code, message=report.message, param=report.param
        ) + self._event("response.failed", response=self._job.response("failed", [], error))

    def _begin(self) -> list[bytes]:
        response = self._job.response("in_progress", [])
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event(
                "response.output_item.added", output_index=0, item=self._job.message("in_progress", [])
            ),
            self._event("response.content_part.added", **self._place, part=message_part("")),
        ]

    def _event(self, name: str, **fields: Any) -> bytes:
        data = encode_json({"type": name, "sequence_number": self._num_events, **fields})
        self._num_events += 1
        return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
