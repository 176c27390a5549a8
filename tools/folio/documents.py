"""What a training document is, how phrasings are split, and how a document becomes text with a loss mask."""

import re
from random import Random
from typing import NamedTuple

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

# Kept in step with `render`: the same turns give the same text in training and behind a server.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


NUMBER_FIELDS = frozenset({"{a}", "{b}", "{s}", "{age}", "{price}", "{quantity}", "{degrees}"})


class Turn(NamedTuple):
    """One message of a chat."""

    role: str
    text: str


class Document(NamedTuple):
    """A chat (`turns`) or a plain text (`text`); `plain_prompt` is how much of the text evaluation gives."""

    topic: str
    turns: tuple[Turn, ...] = ()
    text: str = ""
    plain_prompt: str = ""


class Segment(NamedTuple):
    """A piece of rendered text; the loss counts its tokens only where `learn` is true."""

    text: str
    learn: bool


class Phrasings(NamedTuple):
    """Templates of one question, split once and for all: `held_out` ones never reach the training text."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def pick(self, rng: Random, split: str) -> str:
        return rng.choice(getattr(self, split))


REGISTRY: list[Phrasings] = []


def phrasings(train: str, held_out: str = "") -> Phrasings:
    """Read one template per line, and remember the set so that tests can check the split."""
    made = Phrasings(_lines(train), _lines(held_out))
    REGISTRY.append(made)
    return made


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip().replace("\\n", "\n") for line in block.strip().splitlines() if line.strip())


def chat(topic: str, question: str, answer: str) -> Document:
    return Document(topic, (Turn("user", question), Turn("assistant", answer)))


def plain(topic: str, text: str, prompt: str = "") -> Document:
    return Document(topic, text=text, plain_prompt=prompt)


def render(document: Document) -> list[Segment]:
    """Document -> segments; a plain text is learned whole, a chat only in the assistant's words."""
    if not document.turns:
        return [Segment(document.text + END_OF_TEXT, True)]
    segments = []
    for role, text in document.turns:
        segments.append(Segment(f"{IM_START}{role}\n", False))
        segments.append(Segment(f"{text}{IM_END}", role == "assistant"))
        segments.append(Segment("\n", False))
    return segments


def normalise(text: str) -> str:
    """Lower case, no punctuation at the ends, single spaces: two phrasings equal here are the same phrasing."""
    return re.sub(r"\s+", " ", text.lower()).strip(" .?!:。？！：")


def template_pattern(template: str) -> re.Pattern[str]:
    """A pattern that matches every text a template can give; each {field} stands for anything."""
    parts = re.split(r"(\{\w+\})", normalise(template))
    return re.compile("".join(_field_pattern(part) for part in parts), re.DOTALL)


def _field_pattern(part: str) -> str:
    if not part.startswith("{"):
        return re.escape(part)
    return r"\d+" if part in NUMBER_FIELDS else ".+"
