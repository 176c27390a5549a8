"""What watching costs the engine: the log of a step, and a look as `/stats` takes them, beside the step itself. CPU time.

Run `python -m benchmarks.watching`. The model is the stub of `benchmarks.engine_overhead`, so a step is as short as it can be and
the shares are upper bounds. Figures are the best of `--rounds` turns. A look's memory map is measured apart, with every block of
`--blocks` owned, half of them, and none; the rest are cached.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import msgspec
import torch

from benchmarks.engine_overhead import KINDS, SAMPLING, make_engine
from quire.batch import ScheduledRequest
from quire.config.types import CacheConfig, KVCacheSpec
from quire.core.block_manager import BlockManager
from quire.core.memory_map import map_memory
from quire.core.request import Request
from quire.core.step_log import MAX_RECORDS
from quire.sampling_params import SamplingParams
from quire.server.playground.feed import MAX_SHARE, PERIOD_S


def best_us(work: Callable[[], object], num_calls: int, rounds: int) -> float:
    """Microseconds of CPU time of a call."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(num_calls):
            work()
        times.append((time.process_time() - start) / num_calls)
    return 1e6 * min(times)


def measure(args: argparse.Namespace, batch_size: int) -> dict[str, float]:
    """Microseconds of a step, of its log, and of a look; and the share of the engine's time that both take together."""
    engine = make_engine(args, batch_size)
    params = SamplingParams(max_tokens=None, ignore_eos=True, seed=1, output_kind=KINDS["delta"], **SAMPLING["greedy"])
    for i in range(batch_size):
        engine.add_request(f"request-{i}", list(range(300 + i, 364 + i)), params)
    for _ in range(20):
        engine.step()
    step_us = best_us(engine.step, args.num_steps, args.rounds)
    core = engine.core
    core.observe()
    log, requests = core.scheduler.log, core.scheduler.running.requests
    assert log is not None
    entries = [ScheduledRequest(each.request_id, each.num_computed_tokens, 1, [], True) for each in requests]

    def write() -> None:
        log.begin_step(1, requests, entries)
        log.end_step()

    log_us = best_us(write, 1000, args.rounds)
    num_news = min(MAX_RECORDS, round(1e6 * PERIOD_S / step_us))
    after = log.since(0)[-1].sequence - num_news
    look_us = best_us(lambda: msgspec.msgpack.encode(core.observe(after)), 20, args.rounds)
    engine.shutdown()
    share = log_us / step_us + min(MAX_SHARE, look_us / (1e6 * PERIOD_S))
    return {"step": step_us, "log": log_us, "look": look_us, "percent": 100 * share}


def measure_look(num_blocks: int, owned: float) -> float:
    """Best milliseconds of a memory map in which this share of the blocks has an owner, and the rest is cached."""
    blocks = BlockManager(CacheConfig(), KVCacheSpec(num_blocks + 1, 0, 16, 1))
    requests = []
    for name, share in (("owner", owned), ("gone", 1.0 - owned)):
        num_tokens = int(share * num_blocks) * 16
        request = Request(name, range(num_tokens), SamplingParams())
        blocks.grow(request, num_tokens)
        request.num_computed_tokens = num_tokens
        blocks.register_full_blocks(request)
        requests.append(request)
    blocks.free(requests.pop())
    times = []
    for _ in range(10):
        start = time.process_time()
        map_memory(blocks, requests, lambda _: 1)
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def main() -> None:
    """Measure and print tables, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--num-steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    args.shape, args.prompt_len = None, 64
    torch.set_num_threads(1)
    rows = {size: measure(args, size) for size in args.batch_sizes}
    print(f"{'batch':>6}{'step':>10}{'log':>10}{'look':>10}   (us of CPU time)   share of the engine's time while watched")
    for size, row in rows.items():
        print(f"{size:>6}{row['step']:>10.1f}{row['log']:>10.2f}{row['look']:>10.1f}{row['percent']:>19.2f} %")
    looks = {owned: measure_look(args.blocks, owned) for owned in (1.0, 0.5, 0.0)}
    for owned, milliseconds in looks.items():
        print(f"map of {args.blocks} blocks, {owned:.0%} owned: {milliseconds:.1f} ms")
    print(json.dumps({"benchmark": "watching", **vars(args), "rows": rows, "map_ms": looks}))


if __name__ == "__main__":
    main()
