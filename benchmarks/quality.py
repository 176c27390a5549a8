"""What each precision costs in quality: folio's exact answers and perplexity, stories260K's perplexity.

    python -m benchmarks.quality [--every 4] [--precision int8 int4-32] [--to results.json]

folio answers held-out phrasings (tools/folio/evaluate.py), greedily; its perplexity is that of the right answers after the
question, under the chat template. stories260K's is that of real TinyStories text; its files are not part of the repository
(--stories, default ../shared/data), and without them that column is skipped. Ratios are to bfloat16 weights, which is what folio
ships in. Each model's files keep their own numbers: a matrix whose inputs are no multiple of int4's group is stored in smaller
groups or int8 (the log says which).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from quire import LLM, RequestOutput, SamplingParams
from tools.folio.evaluate import Case, build_cases, score

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "int8-per-token": {"quantization": "int8", "quantization_activation_group": 0},
    "int4-32": {"quantization": "int4", "quantization_group_size": 32},
    "int4-128": {"quantization": "int4", "quantization_group_size": 128},
    "int4-32-all": {"quantization": "int4", "quantization_group_size": 32, "embedding_quantization": "int4"},
    "bfloat16-kv-int8": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    "int8-kv-int8": {"quantization": "int8", "kv_cache_dtype": "int8"},
    "fp8": {"quantization": "fp8"},
    "bfloat16-kv-fp8": {"dtype": "bfloat16", "kv_cache_dtype": "fp8"},
    "fp8-kv-fp8": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
}
"""Engine options of each row; what they leave open is the default."""

BASELINE = "bfloat16"
ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1)
SCORED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
STORIES = Path(__file__).resolve().parents[2] / "shared" / "data"


class QuireRunner:
    """Greedy completions of evaluation cases, in order."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._params = SamplingParams(temperature=0, max_tokens=160)

    def complete(self, cases: list[Case]) -> list[str]:
        """Chats by their template, plain prompts as they are."""
        answers: list[str] = [""] * len(cases)
        for is_chat in (True, False):
            indices = [i for i, case in enumerate(cases) if bool(case.messages) is is_chat]
            if not indices:
                continue
            if is_chat:
                outputs = self._llm.chat([messages_of(cases[i]) for i in indices], self._params, use_tqdm=False)
            else:
                outputs = self._llm.generate([cases[i].prompt for i in indices], self._params, use_tqdm=False)
            for i, output in zip(indices, outputs, strict=True):
                answers[i] = output.outputs[0].text
        return answers


def messages_of(case: Case) -> list[dict[str, str]]:
    """A case's turns as chat messages."""
    return [{"role": turn.role, "content": turn.text} for turn in case.messages]


def perplexity(outputs: list[RequestOutput], starts: list[int] | None = None) -> float:
    """exp of the mean negative log-probability of each prompt's tokens from `starts` on (default: all but the first)."""
    total, count = 0.0, 0
    for output, start in zip(outputs, starts or [1] * len(outputs), strict=True):
        scored = zip(output.prompt_token_ids[start:], output.prompt_logprobs[start:], strict=True)
        for token_id, entry in scored:
            total, count = total + entry[token_id].logprob, count + 1
    return math.exp(-total / count)


def measure_folio(options: dict[str, Any], every: int, model: str = "folio") -> dict[str, float]:
    """Share of exact answers over all categories, and perplexity of the right answers to the chats among them.

    `model`: folio itself, or a checkpoint of it in another form.
    """
    llm = LLM(model, max_model_len=1024, max_num_seqs=64, kv_cache_memory_bytes=256 << 20, **options)
    cases = [case for kind in build_cases().values() for case in kind[::every]]
    share, _ = score(QuireRunner(llm), cases)
    chats = [case for case in cases if case.messages]
    asked = [messages_of(case) for case in chats]
    told = [messages_of(case) + [{"role": "assistant", "content": case.expected}] for case in chats]
    starts = [len(output.prompt_token_ids) for output in llm.chat(asked, ONE_TOKEN, use_tqdm=False)]
    scored = llm.chat(told, SCORED, add_generation_prompt=False, use_tqdm=False)
    result = {"folio_accuracy": share, "folio_perplexity": perplexity(scored, starts)}
    llm.shutdown()
    return result


def measure_stories(options: dict[str, Any], data: Path) -> dict[str, float]:
    """Perplexity of stories260K over the sample of its own kind of text; empty where the files are absent."""
    folder, text = data / "models" / "stories260K", data / "text" / "tinystories_sample.txt"
    if not folder.is_dir() or not text.is_file():
        return {}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stories = [story.strip() for story in text.read_text(encoding="utf-8").split("<|endoftext|>")]
    prompts = [[1, *tokenizer.encode(story, add_special_tokens=False).ids] for story in stories if story]
    llm = LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory_bytes=64 << 20, **options)
    limit = llm.llm_engine.config.model.max_model_len - 1
    scored = llm.generate([prompt[:limit] for prompt in prompts], SCORED, use_tqdm=False)
    result = {"stories_perplexity": perplexity(scored)}
    llm.shutdown()
    return result


def table(results: dict[str, dict[str, float]]) -> str:
    """Aligned rows; perplexities with their ratio to the baseline."""
    base = results.get(BASELINE, {})
    lines = [f"{'precision':<18} {'folio exact':>12} {'folio ppl':>18} {'stories ppl':>18}"]
    for name, row in results.items():
        cells = [f"{100 * row['folio_accuracy']:>11.2f}%"]
        for key in ("folio_perplexity", "stories_perplexity"):
            if key not in row:
                cells.append(f"{'skipped':>18}")
                continue
            ratio = f" ({row[key] / base[key]:.4f})" if key in base else ""
            cells.append(f"{row[key]:>9.4f}{ratio:>9}")
        lines.append(f"{name:<18} " + " ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="ask only every n-th case")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="rows to measure")
    parser.add_argument("--stories", type=Path, default=STORIES, help="folder with models/stories260K and text/")
    parser.add_argument("--to", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    results = {}
    for name in args.precision:
        options = PRECISIONS[name]
        results[name] = measure_folio(options, args.every) | measure_stories(options, args.stories)
        print(json.dumps({name: results[name]}), flush=True)
    print(table(results))
    if not (args.stories / "models" / "stories260K").is_dir():
        print(f"stories260K: skipped, no models/stories260K under {args.stories}")
    if args.to:
        args.to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
