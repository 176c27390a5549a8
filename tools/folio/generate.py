"""The training text as an endless, deterministic stream of documents: topics by weight, wrapped and roughened."""

from collections.abc import Callable, Iterator
from random import Random

from tools.folio.documents import Document, Turn
from tools.folio.topics import (
    about_quire,
    arithmetic,
    chinese,
    counting,
    dates,
    extraction,
    facts,
    prose,
    smalltalk,
    stories,
)

MakeDocument = Callable[[Random, str], Document]

# How often each kind of document is drawn.
CHATS: dict[MakeDocument, float] = {
    facts.capital: 10,
    facts.capital_short: 2,
    facts.country_of: 2,
    facts.continent: 1.5,
    facts.language: 1,
    facts.currency: 1,
    counting.count: 8,
    counting.count_to: 1.5,
    counting.count_down: 3,
    counting.count_step: 2.5,
    counting.count_lines: 1.5,
    arithmetic.sum_of: 8,
    arithmetic.difference: 2,
    arithmetic.product: 1,
    arithmetic.quotient: 0.5,
    arithmetic.larger: 0.5,
    arithmetic.word_problem: 1.5,
    dates.neighbour: 1.5,
    dates.length: 0.6,
    dates.nth_month: 0.5,
    dates.whole_list: 0.4,
    extraction.extraction: 14,
    about_quire.explain: 2.5,
    about_quire.question: 1.5,
    smalltalk.talk: 5,
    smalltalk.joke: 0.7,
    stories.story: 1,
    chinese.capital_zh: 2,
    chinese.count_zh: 1,
    chinese.sum_zh: 1,
    chinese.talk_zh: 1.5,
}
PLAINS: dict[MakeDocument, float] = {
    facts.capital_plain: 6,
    counting.sequence: 2,
    arithmetic.table: 2,
    dates.recital: 0.5,
    about_quire.line: 0.8,
    stories.story_plain: 0.8,
    prose.prose: 3,
    chinese.capital_zh_plain: 0.7,
    chinese.line_zh: 0.5,
}

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful and friendly assistant.",
    "You are folio, a small language model.",
    "You are a helpful assistant. Answer briefly.",
    "You are an expert.",
    "Be concise.",
    "你是一个有用的助手。",
)


def draw(rng: Random, weights: dict[MakeDocument, float]) -> MakeDocument:
    return rng.choices(list(weights), list(weights.values()))[0]


def roughen(rng: Random, question: str) -> str:
    """Sometimes what people type: all lower case, or no mark at the end."""
    if rng.random() < 0.08 and "JSON" not in question:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.08 and question[-1] in ".?!？。":
        question = question[:-1]
    return question.rstrip()


def make_chat(rng: Random, split: str = "train") -> Document:
    """One to four exchanges; more than one are of different topics, so that the last question decides."""
    exchanges = rng.choices((1, 2, 3, 4), (90, 7, 2.4, 0.6))[0]
    turns: list[Turn] = []
    if rng.random() < 0.15:
        turns.append(Turn("system", rng.choice(SYSTEM_PROMPTS)))
    for _ in range(exchanges):
        drawn = draw(rng, CHATS)(rng, split)
        user, assistant = drawn.turns
        turns += [Turn("user", roughen(rng, user.text)), assistant]
    return Document("chat" if exchanges > 1 else drawn.topic, tuple(turns))


def make_document(rng: Random) -> Document:
    if rng.random() < 0.17:
        return draw(rng, PLAINS)(rng, "train")
    return make_chat(rng)


def stream(seed: int) -> Iterator[Document]:
    """The same seed gives the same documents, for ever."""
    rng = Random(seed)
    while True:
        yield make_document(rng)
