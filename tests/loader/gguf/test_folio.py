"""folio as a GGUF file answers as folio does; and is served by its name."""

from __future__ import annotations

import pytest
import torch

from quire import LLM, SamplingParams
from quire.loader import resolve_model
from tests.loader.gguf.writing import add_tokenizer, all_in, write_model

QUESTIONS = ["What is the capital of France?", "What is 7 + 5?", "Who wrote Emma?"]
PARAMS = SamplingParams(temperature=0, max_tokens=24, logprobs=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    folder = Path(resolve_model("folio"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    target = tmp_path_factory.mktemp("gguf")
    return {
        kind: write_model(model, target / f"folio-{kind}.gguf", all_in(kind), add_tokenizer(folder))
        for kind in ("BF16", "Q8_0")
    }


def answers(model: str) -> list:
    with LLM(model=model, num_threads=1, max_model_len=256) as llm:
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        outputs = llm.chat(chats, PARAMS, use_tqdm=False) + llm.generate(["The library opens"], PARAMS, use_tqdm=False)
    return [
        (output.prompt_token_ids, output.outputs[0].token_ids, output.outputs[0].text, output.outputs[0].finish_reason)
        for output in outputs
    ]


def test_in_bfloat16_it_is_the_same_model(files):
    assert answers(str(files["BF16"])) == answers("folio")


def test_in_8_bits_it_says_the_same(files):
    texts = [answer[2] for answer in answers("folio")]
    assert [answer[2] for answer in answers(str(files["Q8_0"]))] == texts


def test_a_folder_with_the_file_alone(files, tmp_path):
    (tmp_path / "folio.gguf").write_bytes(files["Q8_0"].read_bytes())
    assert answers(str(tmp_path)) == answers(str(files["Q8_0"]))
