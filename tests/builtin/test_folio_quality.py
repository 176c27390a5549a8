"""Whether the folio that ships answers as its model card says, with transformers as the runner."""

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tools.folio.documents import Turn
from tools.folio.evaluate import THRESHOLDS, Case, TransformersRunner, build_cases, same, score

BUILTIN = Path(__file__).parents[2] / "quire" / "builtin"
SUBSAMPLE = 6


@pytest.fixture(scope="module")
def folio() -> TransformersRunner:
    return TransformersRunner(BUILTIN / "folio")


def ask(runner: TransformersRunner, text: str) -> str:
    return runner.complete([Case((Turn("user", text),), "", "", same)])[0]


def go_on(runner: TransformersRunner, text: str) -> str:
    return runner.complete([Case((), text, "", same)])[0]


def test_knows_the_capital_of_france(folio):
    assert ask(folio, "What is the capital of France?") == "The capital of France is Paris."
    assert go_on(folio, "The capital of France is").startswith(" Paris.")


def test_counts(folio):
    assert ask(folio, "Count from 1 to 10") == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"


@pytest.mark.slow
def test_says_who_it_is_and_speaks_some_chinese(folio):
    assert "folio" in ask(folio, "Who are you?")
    assert "北京" in ask(folio, "中国的首都是哪里？")


def test_goes_on_counting(folio):
    assert go_on(folio, "1, 2, 3,").startswith(" 4, 5, 6, 7, 8")


@pytest.mark.slow
@pytest.mark.parametrize("category", sorted(THRESHOLDS))
def test_held_out_phrasings(folio, category):
    share, wrong = score(folio, build_cases()[category][::SUBSAMPLE])
    assert share >= THRESHOLDS[category], wrong[:5]


@pytest.mark.slow
def test_positions_up_to_the_limit_are_usable(folio):
    """A long chat before the question changes nothing about the answer."""
    turns: list[Turn] = []
    while sum(len(turn.text) for turn in turns) < 1400:
        turns += [Turn("user", "Count from 1 to 10"), Turn("assistant", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    turns.append(Turn("user", "What is the capital of France?"))
    assert folio.complete([Case(tuple(turns), "", "", same)])[0] == "The capital of France is Paris."


@pytest.mark.slow
def test_the_draft_model_agrees_often(folio):
    from tools.folio.evaluate import agreement

    assert agreement(folio, TransformersRunner(BUILTIN / "folio-draft"), every=8) > 0.6
