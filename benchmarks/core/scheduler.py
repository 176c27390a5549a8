"""What one step of the scheduler costs: CPU time of schedule + update with many running requests in steady decode.

Run `python -m benchmarks.core.scheduler`. The worker's part (building a result) is not timed. Times are CPU time, so that
other work on the machine does not count. Target: 2 ms for both together, median, at 1,000 requests and 100,000 blocks.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time

from quire.batch import RequestResult, ScheduledBatch, StepResult
from quire.config.types import CacheConfig, KVCacheSpec, SchedulerConfig
from quire.core.request import Request
from quire.core.scheduler import Scheduler
from quire.sampling_params import SamplingParams

TARGET_MS = 2.0


def cpu_time_s() -> float:
    """CPU time of this process in seconds."""
    return time.process_time()


def make_scheduler(num_requests: int, num_blocks: int, prompt_len: int, prefix_caching: bool) -> Scheduler:
    """A scheduler with all requests admitted and prefilled."""
    config = SchedulerConfig(
        max_num_batched_tokens=num_requests * prompt_len, max_num_seqs=num_requests, max_model_len=1 << 20
    )
    cache = CacheConfig(enable_prefix_caching=prefix_caching)
    kv = KVCacheSpec(num_blocks, num_host_blocks=0, block_size=cache.block_size, bytes_per_block=1)
    scheduler = Scheduler(config, cache, kv)
    for index in range(num_requests):
        # Lengths differ, so that the block borders of different requests fall in different steps.
        prompt = [index] * (prompt_len - index % cache.block_size)
        params = SamplingParams(max_tokens=None, temperature=0.0)
        scheduler.add(Request(f"request-{index:06d}-{index * 7919:012x}", prompt, params))
    return scheduler


def make_result(batch: ScheduledBatch, token_id: int) -> StepResult:
    """What a worker would answer."""
    results = [
        RequestResult(entry.request_id, [token_id] if entry.samples else []) for entry in batch.requests
    ]
    return StepResult(batch.step_id, results)


def measure(scheduler: Scheduler, num_steps: int, num_warmup: int) -> dict[str, list[float]]:
    """Milliseconds of each step's schedule, update, and both."""
    times: dict[str, list[float]] = {"schedule": [], "update": [], "step": []}
    for step in range(num_warmup + num_steps):
        start = cpu_time_s()
        batch = scheduler.schedule()
        scheduled = cpu_time_s()
        result = make_result(batch, step % 30_000)
        executed = cpu_time_s()
        updates = scheduler.update(batch, result)
        end = cpu_time_s()
        if step >= num_warmup:
            assert len(updates) == len(batch.requests) == batch.num_tokens
            times["schedule"].append((scheduled - start) * 1e3)
            times["update"].append((end - executed) * 1e3)
            times["step"].append(times["schedule"][-1] + times["update"][-1])
    return times


def summarise(times: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    named = {"p10": cuts[9], "p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}
    return {"min": min(times), **named, "max": max(times), "mean": statistics.fmean(times)}


def main() -> None:
    """Measure and print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-requests", type=int, default=1000)
    parser.add_argument("--num-blocks", type=int, default=100_000)
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--no-prefix-caching", action="store_true")
    args = parser.parse_args()
    scheduler = make_scheduler(
        args.num_requests, args.num_blocks, args.prompt_len, not args.no_prefix_caching
    )
    gc.collect()
    gc.freeze()  # as an engine does when it is up: no collection walks what stays
    times = measure(scheduler, args.num_steps, num_warmup=20)
    summary = {name: summarise(values) for name, values in times.items()}
    print(f"{'ms of CPU time':<16}" + "".join(f"{name:>9}" for name in summary["step"]))
    for name, row in summary.items():
        print(f"{name:<16}" + "".join(f"{value:>9.3f}" for value in row.values()))
    print(json.dumps({"benchmark": "core.scheduler", **vars(args), "target_ms": TARGET_MS, "ms": summary}))


if __name__ == "__main__":
    main()
