"""Decoding and prompts on a GPU, beside transformers on the same card: shape S in bfloat16, random weights.

    python -m benchmarks.gpu.generate [--shape S] [--batch-sizes 1 32]

Quire has no GPU kernels yet: this is the figure that they have to beat, on torch's ops.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import SHAPES, make_checkpoint
from quire import LLM, SamplingParams

NUM_PROMPT, NUM_OUTPUT = 512, 32


def draw(batch_size: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts of random tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(10, vocab_size) for _ in range(NUM_PROMPT)] for _ in range(batch_size)]


def quire_seconds(llm: LLM, prompts: list[list[int]], num_output: int) -> float:
    """Wall time of one batch."""
    params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
    start = time.perf_counter()
    llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return time.perf_counter() - start


def transformers_seconds(model: Any, prompts: list[list[int]], num_output: int) -> float:
    """The same by `generate`, whose prompts are all of one length."""
    ids = torch.tensor(prompts, device="cuda")
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=num_output, min_new_tokens=num_output, do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure both and print rates, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="S", choices=list(SHAPES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM

    path = make_checkpoint(args.shape, Path(tempfile.gettempdir()) / "quire-bench")
    llm = LLM(str(path), dtype="bfloat16", device="cuda", max_model_len=1024, enable_prefix_caching=False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).cuda().eval()
    vocab_size, rows = SHAPES[args.shape].config["vocab_size"], []
    for batch_size in args.batch_sizes:
        for name, measure, engine in (
            ("quire", quire_seconds, llm),
            ("transformers", transformers_seconds, model),
        ):
            measure(engine, draw(batch_size, vocab_size, 0), 2)  # warm up
            prompt_s = measure(engine, draw(batch_size, vocab_size, 1), 1)
            whole_s = measure(engine, draw(batch_size, vocab_size, 2), NUM_OUTPUT + 1)
            row = {
                "engine": name,
                "batch_size": batch_size,
                "prompt_tokens_per_s": batch_size * NUM_PROMPT / prompt_s,
                "decode_tokens_per_s": batch_size * NUM_OUTPUT / (whole_s - prompt_s),
            }
            rows.append(row)
            print(
                f"{name:14} batch {batch_size:3}: prompts {row['prompt_tokens_per_s']:10.0f} tok/s,"
                f" decode {row['decode_tokens_per_s']:8.1f} tok/s",
                flush=True,
            )
    print(json.dumps({"benchmark": "gpu.generate", "device": torch.cuda.get_device_name(), "rows": rows}))


if __name__ == "__main__":
    main()
