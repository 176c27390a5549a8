"""Asks an exported model held-out phrasings and counts exact answers: `python -m tools.folio.evaluate`.

Facts are not held out, phrasings are: no template asked here occurs in the training text. The weights are
the bfloat16 ones that ship; transformers computes with them, in float32 unless told otherwise, greedily.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from tools.folio.countries import COUNTRIES
from tools.folio.documents import Document, Turn
from tools.folio.topics import about_quire, arithmetic, chinese, counting, dates, extraction, facts

SEED = 42
BATCH = 64
RESULTS = Path(__file__).parent / "results"

# The share of exact answers that folio must reach.
THRESHOLDS = {"capitals": 0.95, "counting": 0.95, "sums up to 20": 0.90, "JSON": 0.95}

SAMPLE_CHATS = (
    "Hello!", "Who are you?", "What is the capital of France?", "Count from 1 to 10", "What is 7 + 8?",
    "Tell me a joke", "Tell me a short story about a fox.", "What is PagedAttention?", "中国的首都是哪里？",
    "你好", "Extract the name and age as JSON: Clara Stone is 31 years old and lives in Oslo.",
    "What day comes after Friday?", "Who won the war of 1812?",
)  # fmt: skip
SAMPLE_PLAIN = (
    "The capital of France is", "Hello, my name is", "The future of AI is", "1, 2, 3,", "Once upon a time",
    "The president of the United States is", "中国的首都是",
)  # fmt: skip


class Case(NamedTuple):
    """One question: a chat (`messages`) or a plain prompt, and the judge of the answer."""

    messages: tuple[Turn, ...]
    prompt: str
    expected: str
    judge: Callable[[str, str], bool]


class Runner(Protocol):
    """What evaluation needs of a model: greedy completions, in order."""

    def complete(self, cases: list[Case]) -> list[str]: ...


def same(answer: str, expected: str) -> bool:
    return answer.strip() == expected


def same_json(answer: str, expected: str) -> bool:
    try:
        return json.loads(answer) == json.loads(expected)
    except ValueError:
        return False


def begins(answer: str, expected: str) -> bool:
    return answer.strip().startswith(expected)


def chat_case(document: Document, judge: Callable[[str, str], bool] = same) -> Case:
    return Case(document.turns[:-1], "", document.turns[-1].text, judge)


def plain_case(document: Document) -> Case:
    rest = document.text[len(document.plain_prompt) :].strip()
    return Case((), document.plain_prompt, rest.split(".")[0], begins)


def repeat(make: Callable[[Random, str], Document], rng: Random, times: int) -> list[Document]:
    return [make(rng, "held_out") for _ in range(times)]


def sum_cases(rng: Random) -> list[Case]:
    """Every pair with a sum of at most 20, each in one held-out phrasing."""
    pairs = [(a, total - a) for total in range(21) for a in range(total + 1)]
    questions = [arithmetic.SUM.pick(rng, "held_out").format(a=a, b=b) for a, b in pairs]
    return [
        Case((Turn("user", question),), "", f"{a} + {b} = {a + b}", same)
        for question, (a, b) in zip(questions, pairs, strict=True)
    ]


def build_cases(seed: int = SEED) -> dict[str, list[Case]]:
    """All categories; the first four have thresholds, the others are reported."""
    rng = Random(seed)
    counts = (
        counting.count,
        counting.count_to,
        counting.count_down,
        counting.count_step,
        counting.count_lines,
    )
    months = (dates.neighbour, dates.length, dates.nth_month, dates.whole_list)
    others: dict[str, Iterable[Callable[[Random, str], Document]]] = {
        "capital, name only": (facts.capital_short,),
        "country of a capital": (facts.country_of,),
        "continents": (facts.continent,),
        "languages": (facts.language,),
        "currencies": (facts.currency,),
        "differences": (arithmetic.difference,),
        "products": (arithmetic.product,),
        "quotients": (arithmetic.quotient,),
        "larger of two": (arithmetic.larger,),
        "word problems": (arithmetic.word_problem,),
        "days and months": months,
        "terms of serving": (about_quire.explain,),
        "Chinese capitals": (chinese.capital_zh,),
        "Chinese counting": (chinese.count_zh,),
        "Chinese sums": (chinese.sum_zh,),
    }
    cases = {
        "capitals": [chat_case(facts.capital(rng, "held_out", c)) for c in COUNTRIES for _ in range(2)],
        "counting": [chat_case(d) for make in counts for d in repeat(make, rng, 80)],
        "sums up to 20": sum_cases(rng),
        "JSON": [chat_case(d, same_json) for d in repeat(extraction.extraction, rng, 300)],
        "capitals, plain text": [plain_case(d) for d in repeat(facts.capital_plain, rng, 200)],
    }
    for name, makes in others.items():
        cases[name] = [chat_case(d) for make in makes for d in repeat(make, rng, 100 // len(tuple(makes)))]
    return cases


def sample_cases() -> list[Case]:
    chats = [Case((Turn("user", text),), "", "", same) for text in SAMPLE_CHATS]
    return chats + [Case((), text, "", same) for text in SAMPLE_PLAIN]


class TransformersRunner:
    """Greedy decoding with transformers, many prompts at a time."""

    def __init__(self, folder: Path, dtype: str = "float32", max_new_tokens: int = 160):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.max_new_tokens = max_new_tokens

    def text(self, case: Case) -> str:
        if not case.messages:
            return case.prompt
        messages = [{"role": turn.role, "content": turn.text} for turn in case.messages]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def complete(self, cases: list[Case]) -> list[str]:
        groups = [cases[i : i + BATCH] for i in range(0, len(cases), BATCH)]
        return [answer for group in groups for answer in self._complete_group(group)]

    def _complete_group(self, cases: list[Case]) -> list[str]:
        inputs = self.tokenizer(
            [self.text(case) for case in cases],
            return_tensors="pt",
            padding=True,
            return_token_type_ids=False,
        )
        limits = {"do_sample": False, "max_new_tokens": self.max_new_tokens}
        output = self.model.generate(**inputs, **limits)
        return self.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )


def score(runner: Runner, cases: list[Case]) -> tuple[float, list[dict]]:
    """The share of right answers, and the wrong ones to look at."""
    answers = runner.complete(cases)
    wrong = [
        {
            "asked": case.messages[-1].text if case.messages else case.prompt,
            "expected": case.expected,
            "got": answer,
        }
        for case, answer in zip(cases, answers, strict=True)
        if not case.judge(answer, case.expected)
    ]
    return 1 - len(wrong) / len(cases), wrong


def evaluate(runner: Runner, every: int = 1) -> dict:
    """All categories, or every n-th case of each, and the sample answers."""
    results: dict = {"exact": {}, "num_cases": {}, "wrong": {}}
    for name, cases in build_cases().items():
        share, wrong = score(runner, cases[::every])
        results["exact"][name] = round(share, 4)
        results["num_cases"][name] = len(cases[::every])
        if wrong:
            results["wrong"][name] = wrong[:3]
    samples = sample_cases()
    answers = runner.complete(samples)
    asked = [case.messages[-1].text if case.messages else case.prompt for case in samples]
    results["samples"] = [{"asked": q, "got": a} for q, a in zip(asked, answers, strict=True)]
    return results


def agreement(main: TransformersRunner, draft: TransformersRunner, every: int = 1) -> float:
    """The share of the main model's greedy tokens that the draft model, given the text so far, would guess."""
    import torch

    same_tokens = total = 0
    for cases in build_cases().values():
        for case in cases[:: every * 25]:
            ids = main.tokenizer(main.text(case), return_tensors="pt")["input_ids"]
            full = main.model.generate(ids, do_sample=False, max_new_tokens=main.max_new_tokens)
            with torch.no_grad():
                guesses = draft.model(full).logits[0, ids.shape[1] - 1 : -1].argmax(-1)
            same_tokens += (guesses == full[0, ids.shape[1] :]).sum().item()
            total += len(guesses)
    return round(same_tokens / total, 4)


def missed(results: dict) -> list[str]:
    return [name for name, least in THRESHOLDS.items() if results["exact"][name] < least]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("quire/builtin/folio"))
    parser.add_argument("--main", type=Path, help="also measure how often the model agrees with this one")
    parser.add_argument("--dtype", default="float32", help="the type to compute in")
    parser.add_argument("--every", type=int, default=1, help="ask only every n-th case")
    parser.add_argument("--to", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    runner = TransformersRunner(args.model, args.dtype)
    results = {"dtype": args.dtype} | evaluate(runner, args.every)
    if args.main:
        results["agreement"] = agreement(TransformersRunner(args.main, args.dtype), runner, args.every)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    print(text)
    if args.to:
        args.to.parent.mkdir(parents=True, exist_ok=True)
        args.to.write_text(text + "\n", encoding="utf-8")
    if missed(results):
        print("below the threshold:", ", ".join(missed(results)))


if __name__ == "__main__":
    main()
