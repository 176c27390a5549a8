"""Whether Quire and llama.cpp say the same: greedy tokens of one GGUF file, quantized by llama.cpp, on both.

    python -m benchmarks.gguf_parity [--types Q8_0 Q4_0 Q4_K_M] [--shape S] [--llama-bin DIR] [--models DIR]

A checkpoint of random weights becomes a bfloat16 GGUF file and, by llama.cpp's own quantizer, the others. llama-server answers
random prompts greedily, and Quire says after each beginning of an answer which token it would choose. (Each on its own text the
two would part for good at the first near tie, and random weights make many: where rounding decides, llama.cpp parts from itself
under another batch size too.) Printed are the share of equal choices, of answers that are equal to the end, and how much less
likely llama.cpp's token is to Quire where they differ. Both keep keys and values in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters.llamacpp import LlamaCpp, find_tool
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.model_files import make_once
from benchmarks.shapes import SHAPES, SPECIAL_TOKENS, make_checkpoint
from quire import LLM, SamplingParams
from quire.platform import cpu_count

PROMPT_TOKENS = 24


def draw_prompts(vocab_size: int, count: int) -> list[list[int]]:
    """Prompts of arbitrary tokens, the same every time."""
    rng = random.Random(0)
    return [[rng.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def make_files(shape: str, types: list[str], folder: Path) -> dict[str, Path]:
    """A file of each type, made once."""
    checkpoint = make_checkpoint(shape, folder, "bfloat16")
    name = f"{checkpoint.name}-bfloat16.gguf"
    whole = make_once(folder / "llamacpp" / name, lambda target: write_gguf(checkpoint, target, "bfloat16"))

    def quantize(kind: str, target: Path) -> None:
        command = [find_tool("llama-quantize"), str(whole), str(target), kind, str(cpu_count())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    targets = {kind: folder / "llamacpp" / f"{checkpoint.name}-{kind}.gguf" for kind in types}
    return {kind: make_once(target, partial(quantize, kind)) for kind, target in targets.items()}


def answers_of_llama_cpp(file: Path, prompts: list[list[int]], num_tokens: int, threads: int) -> list[list[int]]:
    """Greedy tokens of each prompt, one after the other."""
    adapter = LlamaCpp()
    adapter.load(file, "", threads)
    exact_cache = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    with adapter.server(1, PROMPT_TOKENS + num_tokens + 16, exact_cache) as url:
        return [_complete(url, prompt, num_tokens) for prompt in prompts]


def _complete(url: str, prompt: list[int], num_tokens: int) -> list[int]:
    options: dict[str, Any] = dict(temperature=0, top_k=1, ignore_eos=True, return_tokens=True, cache_prompt=False)
    body = json.dumps(dict(prompt=prompt, n_predict=num_tokens, **options)).encode()
    call = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call) as reply:
        return json.load(reply)["tokens"]


def compare(file: Path, prompts: list[list[int]], theirs: list[list[int]], threads: int) -> dict[str, Any]:
    """Quire's choice after every beginning of llama.cpp's answers."""
    with LLM(model=str(file), num_threads=threads, max_model_len=256, kv_cache_dtype="float32") as llm:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        texts = [{"prompt_token_ids": prompt + answer} for prompt, answer in zip(prompts, theirs, strict=True)]
        outputs = llm.generate(texts, params, use_tqdm=False)
    gaps: list[list[float]] = []
    for output, answer in zip(outputs, theirs, strict=True):
        rows = output.prompt_logprobs[-len(answer) :]
        best = [max(entry.logprob for entry in row.values()) for row in rows]
        gaps.append([top - row[token].logprob for top, row, token in zip(best, rows, answer, strict=True)])
    parted = [gap for answer in gaps for gap in answer if gap > 0]
    return {
        "equal_tokens": 1 - len(parted) / sum(map(len, gaps)),
        "equal_answers": sum(not any(answer) for answer in gaps) / len(gaps),
        "largest_gap": round(max(parted, default=0.0), 4),
        "mean_gap": round(sum(parted) / max(len(parted), 1), 4),
    }


def main() -> None:
    """Print a line of JSON per type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_0", "Q4_K_M"], help="llama-quantize's names")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=cpu_count())
    parser.add_argument("--llama-bin", type=Path, help="llama.cpp's tools; default: PATH")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "quire-bench")
    args = parser.parse_args()
    if args.llama_bin:
        os.environ["PATH"] = f"{args.llama_bin.resolve()}{os.pathsep}{os.environ['PATH']}"
    prompts = draw_prompts(SHAPES[args.shape].config["vocab_size"], args.prompts)
    for kind, file in make_files(args.shape, args.types, args.models).items():
        theirs = answers_of_llama_cpp(file, prompts, args.tokens, args.threads)
        found = compare(file, prompts, theirs, args.threads)
        print(json.dumps({"type": kind, "file_bytes": file.stat().st_size} | found), flush=True)


if __name__ == "__main__":
    main()
