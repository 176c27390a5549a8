"""Whether Quire and llama.cpp say the same: greedy tokens of one GGUF file, quantized by llama.cpp, on both.

    python -m benchmarks.gguf_parity [--types Q8_0 Q4_0 Q4_K_M] [--shape S] [--llama-bin DIR] [--models DIR]

A checkpoint of random weights becomes a bfloat16 GGUF file and, by llama.cpp's own quantizer, the others. Each answers random
prompts greedily on llama-server and on Quire. Random weights make near ties, where rounding decides; after the first token that
differs, the two go on from different texts. So both counts are printed: equal tokens over all, and the gap in log probability
that Quire saw between the two tokens where they first part.
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
_LOGPROBS = 20


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
    with adapter.server(1, PROMPT_TOKENS + num_tokens + 16) as url:
        return [_complete(url, prompt, num_tokens) for prompt in prompts]


def _complete(url: str, prompt: list[int], num_tokens: int) -> list[int]:
    options: dict[str, Any] = dict(temperature=0, top_k=1, ignore_eos=True, return_tokens=True, cache_prompt=False)
    body = json.dumps(dict(prompt=prompt, n_predict=num_tokens, **options)).encode()
    call = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call) as reply:
        return json.load(reply)["tokens"]


def compare(file: Path, prompts: list[list[int]], theirs: list[list[int]], num_tokens: int, threads: int) -> dict[str, Any]:
    """Quire's answers beside llama.cpp's."""
    llm = LLM(model=str(file), num_threads=threads, max_model_len=256, kv_cache_memory_bytes=2**28)
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=_LOGPROBS, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    equal, gaps = 0, []
    for output, wanted in zip(outputs, theirs, strict=True):
        completion = output.outputs[0]
        pairs = list(zip(completion.token_ids, wanted, strict=True))
        equal += sum(mine == other for mine, other in pairs)
        parted = next((step for step, (mine, other) in enumerate(pairs) if mine != other), None)
        if parted is not None:
            row = completion.logprobs[parted]
            mine, other = pairs[parted]
            gaps.append(round(row[mine].logprob - row[other].logprob, 4) if other in row else None)
    llm.shutdown()
    return {
        "equal_tokens": equal / (len(prompts) * num_tokens),
        "equal_prompts": 1 - len(gaps) / len(prompts),
        "gaps": gaps,
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
        found = compare(file, prompts, theirs, args.tokens, args.threads)
        print(json.dumps({"type": kind, "file_bytes": file.stat().st_size} | found), flush=True)


if __name__ == "__main__":
    main()
