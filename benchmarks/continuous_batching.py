"""What continuous batching is worth: Quire against transformers' `generate`, one request at a time and in static batches.

    python -m benchmarks.continuous_batching --shape S --lengths sharegpt_lengths.jsonl

Every contender gets the same token-id prompts and output lengths, greedy, end-of-sequence ignored, float32, the same number of
threads, each in a process of its own, one after another; a line of JSON each, then a table with ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.shapes import SHAPES, make_checkpoint

Request = tuple[list[int], int]
"""Prompt token ids and the number of tokens to generate."""

CONTENDERS = ("quire", "transformers-batch-8", "transformers-one-by-one")


def load_requests(
    path: Path | None, num_requests: int, scale: float, vocab_size: int, seed: int = 0
) -> list[Request]:
    """Requests with the lengths of a trace (or drawn log-uniformly without one), each length divided by `scale`."""
    rng = random.Random(seed)
    if path is not None:
        rows = [json.loads(line) for line in path.read_text().splitlines()[:num_requests]]
        lengths = [(row["input_length"], row["output_length"]) for row in rows]
    else:
        lengths = [
            (int(10 ** rng.uniform(1.5, 3.5)), int(10 ** rng.uniform(1.5, 3.1))) for _ in range(num_requests)
        ]
    shortened = [(max(4, int(i / scale)), max(4, int(o / scale))) for i, o in lengths]
    return [([rng.randrange(10, vocab_size) for _ in range(i)], o) for i, o in shortened]


def run_quire(model: Path, requests: list[Request], threads: int) -> float:
    """Wall seconds of one `LLM.generate` over all requests."""
    from quire import LLM, SamplingParams

    llm = LLM(
        model=str(model),
        dtype="float32",
        skip_tokenizer_init=True,
        num_threads=threads,
        max_model_len=2048,
        max_num_seqs=64,
    )
    params = [
        SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in requests
    ]
    warm_up = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
    llm.generate({"prompt_token_ids": [5, 6, 7, 8]}, warm_up, use_tqdm=False)
    start = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in requests], params, use_tqdm=False)
    wall = time.perf_counter() - start
    assert [len(output.outputs[0].token_ids) for output in outputs] == [n for _, n in requests]
    return wall


def run_transformers(model: Path, requests: list[Request], threads: int, batch_size: int) -> float:
    """Wall seconds of `generate` over left-padded static batches, each as long as its longest member."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    hf = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def generate(batch: list[Request]) -> None:
        width, steps = max(len(ids) for ids, _ in batch), max(n for _, n in batch)
        ids = torch.tensor([[2] * (width - len(p)) + p for p, _ in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in batch])
        with torch.inference_mode():
            hf.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=steps,
                max_new_tokens=steps,
                pad_token_id=2,
            )

    generate([([5, 6, 7, 8], 4)])
    start = time.perf_counter()
    for i in range(0, len(requests), batch_size):
        generate(requests[i : i + batch_size])
    return time.perf_counter() - start


RUNNERS: dict[str, Callable[[Path, list[Request], int], float]] = {
    "quire": run_quire,
    "transformers-batch-8": lambda model, requests, threads: run_transformers(model, requests, threads, 8),
    "transformers-one-by-one": lambda model, requests, threads: run_transformers(model, requests, threads, 1),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--lengths", type=Path, help="trace with input_length and output_length per line")
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--scale", type=float, default=16.0, help="divide the trace's lengths by this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--only", choices=CONTENDERS, help="run one contender in this process")
    return parser.parse_args()


def run_one(args: argparse.Namespace) -> None:
    model = make_checkpoint(args.shape)
    requests = load_requests(
        args.lengths, args.num_requests, args.scale, SHAPES[args.shape].config["vocab_size"]
    )
    wall = RUNNERS[args.only](model, requests, args.threads)
    tokens = sum(n for _, n in requests)
    row = dict(
        contender=args.only,
        shape=args.shape,
        requests=len(requests),
        prompt_tokens=sum(len(p) for p, _ in requests),
    )
    row.update(
        output_tokens=tokens,
        wall_s=round(wall, 2),
        output_tokens_per_s=round(tokens / wall, 2),
        threads=args.threads,
    )
    print(json.dumps(row), flush=True)


def main() -> None:
    args = parse_args()
    if args.only:
        return run_one(args)
    make_checkpoint(args.shape)
    rows = []
    for name in args.contenders:
        command = [sys.executable, "-m", "benchmarks.continuous_batching", *sys.argv[1:], "--only", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip(), flush=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    print("\n| contender | wall s | output tok/s | Quire is faster by |\n|---|--:|--:|--:|")
    for row in rows:
        ratio = row["wall_s"] / rows[0]["wall_s"]
        print(f"| {row['contender']} | {row['wall_s']} | {row['output_tokens_per_s']} | {ratio:.2f} x |")


if __name__ == "__main__":
    main()
