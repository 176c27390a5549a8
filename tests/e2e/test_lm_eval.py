"""lm-eval's `local-completions` model on a small local task: its loglikelihoods are those of `LLM`.

Needs the extra `clients`; slow because of what lm-eval imports.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import openai
import pytest

from quire import LLM, SamplingParams
from tests.e2e.server_process import ServerProcess

FOLIO = Path(__file__).parents[2] / "quire/builtin/folio"
CITIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
PROMPT = "Question: What is the capital of {}?\nAnswer: The capital is"

TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def llm() -> Any:
    with LLM("folio", dtype="float16", max_model_len=1024, num_threads=1) as llm:
        yield llm


def loglikelihood(llm: LLM, context: str, continuation: str) -> float:
    """Sum of the logprobs of the continuation's tokens (nats)."""
    tokenizer = llm.get_tokenizer()
    whole = tokenizer.encode(context + continuation)
    start = len(tokenizer.encode(context))
    (output,) = llm.generate([whole], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    positions = list(zip(whole, output.prompt_logprobs))[start:]
    return sum(position[token].logprob for token, position in positions)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of lm-eval and the packages that it loads
@pytest.mark.parametrize("tokenized_requests", [True, False])
def test_local_completions(
    folio_server: ServerProcess,
    llm: LLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenized_requests: bool,
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings(action="ignore"):
        lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `clients`")
        from lm_eval.tasks import TaskManager

    choices = list(CITIES.values())
    rows = [
        {"prompt": PROMPT.format(country), "choices": choices, "gold": choices.index(city)}
        for country, city in CITIES.items()
    ]
    data = tmp_path / "capitals.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "capitals.yaml").write_text(TASK.format(data=data))
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "folio",
            "base_url": f"{folio_server.url}/v1/completions",
            "tokenizer": str(FOLIO),
            "tokenizer_backend": "huggingface",
            "tokenized_requests": tokenized_requests,
            "max_retries": 1,
        },
        batch_size=4,
        tasks=["capitals"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
    )
    assert results["results"]["capitals"]["acc,none"] == 1.0
    for sample in results["samples"]["capitals"]:
        found = [float(response[0][0]) for response in sample["resps"]]
        assert found == [loglikelihood(llm, sample["doc"]["prompt"], f" {city}") for city in choices]


def test_echo_without_output_scores_the_prompt_as_the_engine_does(
    folio_server: ServerProcess, llm: LLM
) -> None:
    text = PROMPT.format("France") + " Paris."
    ids = llm.get_tokenizer().encode(text)
    (expected,) = llm.generate([ids], SamplingParams(max_tokens=1, prompt_logprobs=2), use_tqdm=False)
    with openai.OpenAI(base_url=f"{folio_server.url}/v1", api_key="unused", timeout=60) as client:
        for prompt in (text, ids):
            answer = client.completions.create(
                model="folio", prompt=prompt, max_tokens=0, echo=True, logprobs=2
            )
            logprobs = answer.choices[0].logprobs
            assert answer.choices[0].text == text
            assert logprobs is not None and logprobs.token_logprobs is not None
            assert logprobs.token_logprobs[0] is None and "".join(logprobs.tokens or []) == text
            wanted = [
                position[token].logprob for token, position in list(zip(ids, expected.prompt_logprobs))[1:]
            ]
            assert logprobs.token_logprobs[1:] == wanted
