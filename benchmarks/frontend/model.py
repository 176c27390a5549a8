"""What serving costs a model: streamed throughput against the offline engine, `python -m benchmarks.frontend.model --shape S`.

Both get the same number of prompts of the same length and the same number of tokens, greedy, end-of-sequence ignored, in turns;
each has the machine to itself meanwhile, engines included. Target: 95 % of the offline engine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.frontend.load import Job
from benchmarks.frontend.processes import Server, generate_load
from benchmarks.shapes import SHAPES, make_checkpoint

PROMPT_LEN = 32
MAX_MODEL_LEN = 1024


def make_prompts(count: int) -> list[list[int]]:
    """Different prompts of `PROMPT_LEN` token ids each, all of them letters."""
    return [[40 + (7 * number + place) % 50 for place in range(PROMPT_LEN)] for number in range(count)]


def run_offline(args: argparse.Namespace) -> None:
    """In a process of its own: print the tokens per second of each round, one for each line that comes in."""
    from quire import LLM, SamplingParams

    llm = LLM(**engine_options(args))
    params = SamplingParams(temperature=0, max_tokens=args.num_tokens, ignore_eos=True)
    prompts: Any = [{"prompt_token_ids": ids} for ids in make_prompts(args.num_streams)]
    llm.generate(prompts[:2], params.clone(max_tokens=4), use_tqdm=False)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        print(args.num_streams * args.num_tokens / (time.perf_counter() - start), flush=True)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The same for both."""
    return {
        "model": str(make_checkpoint(args.shape)),
        "quantization": args.quantization,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": args.num_streams,
        "enable_prefix_caching": False,
    }


def command_line(options: dict[str, Any]) -> list[str]:
    """The options as flags of `quire serve`."""
    flags = [str(options["model"])]
    for name, value in options.items():
        if name == "model":
            continue
        flag = "--" + name.replace("_", "-")
        flags += [flag, str(value)] if not isinstance(value, bool) else [flag if value else flag.replace("--", "--no-")]
    return flags


def measure(args: argparse.Namespace) -> list[tuple[float, float]]:
    """(offline, served) tokens per second, a pair for each round."""
    make_checkpoint(args.shape)  # here, or both would write it
    offline = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.frontend.model", *sys.argv[1:], "--offline"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert offline.stdin is not None and offline.stdout is not None
    common = {"max_tokens": args.num_tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    bodies = [
        common | {"prompt": ids, "stream_options": {"include_usage": True}} for ids in make_prompts(args.num_streams)
    ]
    results = []
    with offline, Server([sys.executable, "-m", "quire", "serve", *command_line(engine_options(args))]) as server:
        job = Job(server.host, server.port, "/v1/completions", bodies, args.num_streams, args.num_streams)
        while offline.stdout.readline() != "ready\n":
            pass
        generate_load(job)
        for _ in range(args.rounds):
            offline.stdin.write("go\n")
            offline.stdin.flush()
            alone = float(offline.stdout.readline())
            outcome = generate_load(job)
            results.append((alone, outcome.num_tokens / outcome.wall_s))
        offline.stdin.close()
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--num-streams", type=int, default=32)
    parser.add_argument("--num-tokens", type=int, default=128, help="per stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.offline:
        run_offline(args)
        return
    results = measure(args)
    for alone, served in results:
        print(f"offline {alone:,.1f} tokens/s, served {served:,.1f} tokens/s, ratio {served / alone:.3f}")
    ratio = statistics.median(served / alone for alone, served in results)
    print(json.dumps({"benchmark": "frontend.model", **vars(args), "tokens/s": results, "median ratio": ratio}))


if __name__ == "__main__":
    main()
