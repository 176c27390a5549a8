"""`quire bench serve`: load on a running server with OpenAI's completions API, as its clients see it."""

from __future__ import annotations

import argparse
import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

from quire.bench.client import Target, post_stream
from quire.bench.report import RequestTimes, add_output_arguments, publish, summarize
from quire.bench.workloads import (
    BenchRequest,
    add_workload_arguments,
    describe_workload,
    fit_to_context,
    make_workload,
    poisson_arrivals,
)
from quire.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `quire bench serve`."""
    server = parser.add_argument_group("server")
    server.add_argument("--base-url", metavar="URL", help="default: http://HOST:PORT")
    server.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address of the server")
    server.add_argument("--port", type=int, default=8000, metavar="PORT", help="its port")
    server.add_argument("--endpoint", default="/v1/completions", metavar="PATH", help="where requests go")
    server.add_argument("--model", metavar="NAME", help="model to ask for; default: the server's first")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--request-rate",
        type=float,
        default=float("inf"),
        metavar="R",
        help="requests per second; inf: all at once",
    )
    load.add_argument("--use-trace-times", action="store_true", help="send requests when the trace did")
    load.add_argument("--max-concurrency", type=int, metavar="N", help="most requests at a time")
    load.add_argument(
        "--num-warmups", type=int, default=1, metavar="N", help="requests before the clock starts"
    )
    load.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=True, help="generate all output tokens"
    )
    load.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy")
    load.add_argument(
        "--request-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds until a request counts as failed",
    )
    add_workload_arguments(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Send all requests; returns 1 if any failed."""
    base_url = args.base_url or f"http://{args.host}:{args.port}"
    requests = make_workload(args)
    card = _model_card(base_url, args.model)
    if card.get("max_model_len"):
        requests = fit_to_context(requests, card["max_model_len"])
    arrivals = _arrivals(args, requests)
    runner = _LoadGenerator(Target.from_url(base_url, args.endpoint), card["id"], args)
    result = {
        "benchmark": "serve",
        "model": card["id"],
        "workload": describe_workload(args),
        "request_rate": "inf" if args.request_rate == float("inf") else args.request_rate,
        "max_concurrency": args.max_concurrency,
    }
    result |= asyncio.run(runner.run(requests, arrivals))
    publish(result, args)
    return 1 if result["failed"] else 0


def _arrivals(args: argparse.Namespace, requests: Sequence[BenchRequest]) -> list[float]:
    if args.request_rate <= 0:
        raise ConfigError(f"request_rate must be greater than 0, got {args.request_rate:g}")
    if args.use_trace_times:
        return [request.arrival_s for request in requests]
    return poisson_arrivals(len(requests), args.request_rate, args.seed)


def _model_card(base_url: str, name: str | None) -> dict[str, Any]:
    """What the server says about the model. Raises ConfigError if there is no server, or no such model."""
    url = base_url.rstrip("/") + "/v1/models"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            cards = msgspec.json.decode(response.read())["data"]
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{url} answers {error.code} {error.reason}") from None
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        raise ConfigError(f"no server answers at {url} ({reason}); start one with quire serve") from None
    for card in cards:
        if name in (None, card["id"]):
            return dict(card)
    raise ConfigError(f"{base_url} does not serve {name!r}, but {', '.join(card['id'] for card in cards)}")


class _LoadGenerator:
    """Sends requests at their times, at most `max_concurrency` at once."""

    def __init__(self, target: Target, model: str, args: argparse.Namespace) -> None:
        self._target = target
        self._model = model
        self._args = args

    async def run(self, requests: Sequence[BenchRequest], arrivals: Sequence[float]) -> dict[str, Any]:
        """The summary of the run."""
        for request in requests[: self._args.num_warmups]:
            await self._send(request)
        gate = asyncio.Semaphore(self._args.max_concurrency or len(requests))
        start = time.perf_counter()
        times = await asyncio.gather(
            *(self._send_at(start + arrival, gate, request) for arrival, request in zip(arrivals, requests))
        )
        return summarize(times, time.perf_counter() - start)

    async def _send_at(self, moment: float, gate: asyncio.Semaphore, request: BenchRequest) -> RequestTimes:
        await asyncio.sleep(moment - time.perf_counter())
        async with gate:
            return await self._send(request)

    async def _send(self, request: BenchRequest) -> RequestTimes:
        body = {
            "model": self._model,
            "prompt": request.prompt_token_ids,
            "max_tokens": request.output_len,
            "temperature": self._args.temperature,
            "ignore_eos": self._args.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.perf_counter()
        answer = await post_stream(self._target, body, self._args.request_timeout)
        times = RequestTimes(
            len(request.prompt_token_ids), error=answer.error, e2e_s=time.perf_counter() - start
        )
        if answer.event_times:
            moments = answer.event_times
            times.ttft_s = moments[0] - start
            times.itl_s = [after - before for before, after in pairwise(moments)]
            times.e2e_s = moments[-1] - start
            times.num_output_tokens = (answer.usage or {}).get("completion_tokens", len(moments))
        return times
