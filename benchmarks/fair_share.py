"""What a tenant's flood costs another tenant: its time to first token beside the flood, by that alone.

    python -m benchmarks.fair_share --policies fair fcfs

A real server with two API keys. The light tenant sends requests at random times, first alone and then while the other tenant
keeps `--num-queued` requests unfinished: whenever one ends it sends the next. Each tenant is a process of its own; the flood
reads whole answers, so that its client takes little of the machine. Every prompt begins differently: the prefix cache has none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from typing import Any

from benchmarks.frontend.processes import Server
from quire.bench.client import StreamResult, Target, post_stream

LIGHT, FLOOD = "light-tenant", "flooding-tenant"
"""The API keys."""
_TIMEOUT_S = 600.0
_WORDS = ("what", "is", "the", "name", "of", "a", "city", "that", "lies", "on", "river", "and", "has", "bridge", "stone")


def make_body(seed: int, num_prompt: int, num_output: int, *, is_stream: bool) -> dict[str, Any]:
    """A completion with a prompt of about so many tokens."""
    rng = random.Random(seed)
    prompt = f"{rng.random()} " + " ".join(rng.choice(_WORDS) for _ in range(num_prompt))
    return {
        "prompt": prompt,
        "truncate_prompt_tokens": num_prompt,
        "max_tokens": num_output,
        "ignore_eos": True,
        "temperature": 0,
        "stream": is_stream,
    }


async def flood(target: Target, args: argparse.Namespace) -> None:
    """Keep so many requests unfinished; a line once all of them were sent. Ends with the process."""
    seeds = itertools.count(10**6)

    async def send_on() -> None:
        while True:
            seed = next(seeds)
            spread = random.Random(seed)
            num_prompt, num_output = (
                max(2, round(size * spread.uniform(0.5, 1.5)))
                for size in (args.flood_prompt, args.flood_output)
            )
            body = make_body(seed, num_prompt, num_output, is_stream=False)
            result = await post_stream(target, body, _TIMEOUT_S, FLOOD)
            if result.error is not None:
                raise RuntimeError(result.error)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(args.num_queued):
            tasks.create_task(send_on())
        await asyncio.sleep(args.lead_s)
        print("flooding", flush=True)


async def trickle(target: Target, args: argparse.Namespace, first_seed: int) -> list[float]:
    """Times to first token, seconds, of requests that come at random times."""
    rng = random.Random(0)

    async def send(seed: int) -> float:
        start = time.perf_counter()
        body = make_body(seed, args.light_prompt, args.light_output, is_stream=True)
        result: StreamResult = await post_stream(target, body, _TIMEOUT_S, LIGHT)
        if result.error is not None or not result.event_times:
            raise RuntimeError(result.error or "an empty stream")
        return result.event_times[0] - start

    tasks = []
    for index in range(args.num_light):
        tasks.append(asyncio.create_task(send(first_seed + index)))
        await asyncio.sleep(rng.expovariate(args.rate))
    return list(await asyncio.gather(*tasks))


def percentile(values: list[float], share: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(policy: str, args: argparse.Namespace) -> dict[str, float]:
    """Times in milliseconds of one server, and their ratio."""
    words = [
        "--scheduling-policy",
        policy,
        "--api-key",
        LIGHT,
        FLOOD,
        "--disable-uvicorn-access-log",
        *args.server,
    ]
    with Server([sys.executable, "-m", "quire", "serve", args.model, *words]) as server:
        target = Target(server.host, server.port, "/v1/completions")
        asyncio.run(trickle(target, argparse.Namespace(**vars(args) | {"num_light": 10}), 0))  # warm up
        alone = asyncio.run(trickle(target, args, 1000))
        options = [f"--{name.replace('_', '-')}={vars(args)[name]}" for name in FLOOD_OPTIONS]
        flooding = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.fair_share",
                "--flood",
                f"{server.host}:{server.port}",
                *options,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert flooding.stdout is not None
        try:
            if flooding.stdout.readline().strip() != "flooding":
                raise RuntimeError("the flood did not start")
            beside = asyncio.run(trickle(target, args, 2000))
        finally:
            flooding.kill()
            flooding.wait()
            flooding.stdout.close()
    row = {
        f"{name}_p{share:.0%}".rstrip("%"): 1e3 * percentile(times, share)
        for name, times in (("alone", alone), ("beside", beside))
        for share in (0.5, 0.95)
    }
    return row | {
        "ratio_p50": row["beside_p50"] / row["alone_p50"],
        "ratio_p95": row["beside_p95"] / row["alone_p95"],
    }


FLOOD_OPTIONS = ("num_queued", "flood_prompt", "flood_output", "lead_s")


def main() -> None:
    """Measure and print a table, then JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="folio")
    parser.add_argument("--policies", nargs="+", default=["fair"], choices=("fair", "fcfs", "priority"))
    parser.add_argument("--rounds", type=int, default=1, help="servers per policy, in turns")
    parser.add_argument("--num-light", type=int, default=100, help="requests of the light tenant")
    parser.add_argument("--rate", type=float, default=4.0, help="of them per second")
    parser.add_argument("--light-prompt", type=int, default=300, help="tokens")
    parser.add_argument("--light-output", type=int, default=16, help="tokens")
    parser.add_argument("--num-queued", type=int, default=200, help="unfinished requests of the flood")
    parser.add_argument("--flood-prompt", type=int, default=300, help="tokens, give or take a half")
    parser.add_argument("--flood-output", type=int, default=100, help="tokens, give or take a half")
    parser.add_argument("--lead-s", type=float, default=3.0, help="seconds that the flood is ahead")
    parser.add_argument("--flood", metavar="HOST:PORT", help=argparse.SUPPRESS)
    parser.add_argument(
        "--server", nargs=argparse.REMAINDER, default=[], help="last: further options of the server"
    )
    args = parser.parse_args()
    if args.flood is not None:
        host, _, port = args.flood.rpartition(":")
        asyncio.run(flood(Target(host, int(port), "/v1/completions"), args))
        return
    rows = [(policy, measure(policy, args)) for _ in range(args.rounds) for policy in args.policies]
    columns = list(rows[0][1])
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns) + "   (ms to the first token)")
    for policy, row in rows:
        print(f"{policy:10}" + "".join(f"{row[column]:>12.2f}" for column in columns))
    print(json.dumps({"benchmark": "fair_share", **vars(args), "rows": rows}))


if __name__ == "__main__":
    main()
