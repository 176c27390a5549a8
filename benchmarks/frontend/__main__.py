"""What the front end costs outside the engine: `python -m benchmarks.frontend`.

The server is the real one (`quire serve`) over a core that computes nothing, in its own process, so tokens are there at once and
the front end is what limits. A load generator in a third process drives it: 256 streams of chat and of completions, then short
requests without streaming. A core that is faster than the front end lets tokens gather, and an event then brings several; in
the workloads `paced` and `ttft` the core takes 20 ms a step, so that every token is an event of its own. `ttft` is open loop:
requests arrive at random, and the same arrivals at a bare core in this process say what part of the time to the first token is
not the front end's. Requests arrive anywhere in a step of 20 ms, on both sides: over 1,200 of them chance moves the difference by
0.25 ms, and over 400 by 0.4 ms.

Rates need cores for three processes. CPU time of the front end per token or request does not, and is what to compare on a busy
machine: `core` in front of a rate is what a front-end process would reach with a core of its own. Targets: 50,000 streamed
tokens per second and front end, 3,000 short requests per second, 3 ms added to the first token at 32 streams.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.frontend.load import Job, Outcome
from benchmarks.frontend.processes import Server, generate_load

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
STEP_S = 0.02
NUM_TTFT_TOKENS = 64
WORKLOADS = ("chat", "completions", "short-chat", "short-completions", "paced", "ttft")
PACED = ("paced", "ttft")


def make_bodies(kind: str, count: int, max_tokens: int, *, stream: bool) -> list[dict[str, Any]]:
    """Different short prompts, all answered with exactly `max_tokens` tokens."""
    common: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True}
    if stream:
        common |= {"stream": True, "stream_options": {"include_usage": True}}
    texts = [f"Tell me something about the number {number}." for number in range(count)]
    if kind == "chat":
        return [common | {"messages": [{"role": "user", "content": text}]} for text in texts]
    return [common | {"prompt": text} for text in texts]


def measure(server: Server, job: Job) -> tuple[Outcome, dict[str, float]]:
    """The outcome of a job, and the CPU seconds of front end and engine meanwhile."""
    before = server.cpu_s()
    outcome = generate_load(job)
    after = server.cpu_s()
    return outcome, {name: after[name] - before[name] for name in before}


def measure_streams(server: Server, kind: str, args: argparse.Namespace) -> dict[str, float]:
    """One row: `num_streams` streams at once."""
    bodies = make_bodies(kind, args.num_streams, args.num_tokens, stream=True)
    job = Job(server.host, server.port, PATHS[kind], bodies, args.num_streams, args.num_streams)
    outcome, cpu = measure(server, job)
    assert outcome.num_tokens == args.num_streams * args.num_tokens, outcome.num_tokens
    tokens = outcome.num_tokens
    return {
        "tokens/s": tokens / outcome.wall_s,
        "core tokens/s": tokens / cpu["front"],
        "events/s": outcome.num_events / outcome.wall_s,
        "tokens/event": tokens / outcome.num_events,
        "front us/token": 1e6 * cpu["front"] / tokens,
        "front us/event": 1e6 * cpu["front"] / outcome.num_events,
        "front cores": cpu["front"] / outcome.wall_s,
        "engine cores": cpu["engine"] / outcome.wall_s,
        "load cores": outcome.cpu_s / outcome.wall_s,
    }


def measure_short(server: Server, kind: str, args: argparse.Namespace) -> dict[str, float]:
    """One row: short requests over connections that are kept open."""
    bodies = make_bodies(kind, 64, args.num_short_tokens, stream=False)
    job = Job(server.host, server.port, PATHS[kind], bodies, 64, args.num_short)
    outcome, cpu = measure(server, job)
    return {
        "requests/s": args.num_short / outcome.wall_s,
        "core requests/s": args.num_short / cpu["front"],
        "front us/request": 1e6 * cpu["front"] / args.num_short,
        "median ms": 1e3 * statistics.median(outcome.latencies),
        "front cores": cpu["front"] / outcome.wall_s,
        "engine cores": cpu["engine"] / outcome.wall_s,
        "load cores": outcome.cpu_s / outcome.wall_s,
    }


def measure_ttft(server: Server, args: argparse.Namespace) -> dict[str, float]:
    """Time to the first token at `num_ttft_streams` streams on average, beside that of the core alone."""
    rate = args.num_ttft_streams / (NUM_TTFT_TOKENS * STEP_S)
    bodies = make_bodies("chat", 64, NUM_TTFT_TOKENS, stream=True)
    job = Job(server.host, server.port, PATHS["chat"], bodies, 0, args.num_ttft, rate)
    outcome, cpu = measure(server, job)
    alone, period = ttfts_of_core(outcome.sent)
    return {
        "mean ms": 1e3 * statistics.fmean(outcome.ttfts),
        "core alone ms": 1e3 * statistics.fmean(alone),
        "added ms": 1e3 * (statistics.fmean(outcome.ttfts) - statistics.fmean(alone)),
        "median added ms": 1e3 * (statistics.median(outcome.ttfts) - statistics.median(alone)),
        "step ms": 1e3 * statistics.median(outcome.periods),
        "step alone ms": 1e3 * period,
        "front cores": cpu["front"] / outcome.wall_s,
    }


def ttfts_of_core(times: Sequence[float]) -> tuple[list[float], float]:
    """Requests that arrive at these times at a core without any front end: seconds to the first token of each, and of a step."""
    from quire.config.engine_args import EngineArgs
    from quire.engine.engine_core import EngineCore
    from quire.engine.messages import AddRequest
    from quire.executor.simulated import SimulatedExecutor, StepTime
    from quire.sampling_params import SamplingParams

    config = EngineArgs(distributed_executor_backend="simulated", max_num_seqs=256).create_engine_config()
    core = EngineCore(config, SimulatedExecutor(config, StepTime(STEP_S)))
    params = SamplingParams(max_tokens=NUM_TTFT_TOKENS, ignore_eos=True)
    start, ttfts, steps, num_added, num_done = time.perf_counter(), {}, [], 0, 0
    while num_done < len(times):
        now = time.perf_counter() - start
        while num_added < len(times) and times[num_added] <= now:
            core.add(AddRequest(str(num_added), list(range(300, 316)), params, seed=num_added))
            num_added += 1
        if not core.has_work():
            time.sleep(max(0.0, times[num_added] - now))
            continue
        for update in core.step():
            ttfts.setdefault(update.request_id, time.perf_counter() - start - times[int(update.request_id)])
            num_done += update.finish_reason is not None
        steps.append(time.perf_counter() - start - now)
    return list(ttfts.values()), statistics.median(steps)


def show(name: str, rows: list[dict[str, float]]) -> None:
    """The median of each figure over the rounds."""
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in median.items()), flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--num-streams", type=int, default=256)
    parser.add_argument("--num-tokens", type=int, default=512, help="per stream")
    parser.add_argument("--num-short", type=int, default=6000, help="short requests")
    parser.add_argument("--num-short-tokens", type=int, default=4)
    parser.add_argument("--num-ttft", type=int, default=1200, help="requests of the workload ttft")
    parser.add_argument("--num-ttft-streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", nargs="+", default=[sys.executable, "-m", "quire", "serve"], help="command")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options of the server")
    return parser.parse_args()


def main() -> None:
    """Measure and print a line per workload, then JSON."""
    args = parse_args()
    command = [*args.server, "--distributed-executor-backend", "simulated", "--max-num-seqs", "256", *args.options]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in args.workloads}
    paced = [name for name in rows if name in PACED]
    with Server(command) as server:
        measure_streams(server, "chat", argparse.Namespace(num_streams=64, num_tokens=64))
        for _ in range(args.rounds):
            for name in rows.keys() - paced:
                kind = name.removeprefix("short-")
                measure_one = measure_short if name.startswith("short-") else measure_streams
                rows[name].append(measure_one(server, kind, args))
    if paced:
        with Server(command, {"QUIRE_SIMULATED_STEP_S": str(STEP_S)}) as server:
            if "paced" in rows:
                rows["paced"].append(measure_streams(server, "chat", args))
            if "ttft" in rows:
                rows["ttft"].append(measure_ttft(server, args))
    for name in rows:
        show(name, rows[name])
    print(json.dumps({"benchmark": "frontend", **vars(args), "rows": rows}))


if __name__ == "__main__":
    main()
