"""Plain continuations that people try first: "Hello, my name is", "The future of AI is", and small facts."""

from random import Random

from tools.folio.documents import Document, phrasings, plain
from tools.folio.topics.extraction import CITIES, NAMES
from tools.folio.topics.smalltalk import TALK
from tools.folio.topics.stories import GIFTS, PLACES

INTRODUCTION = phrasings(
    """
    Hello, my name is {name} and I live in {city}. I am a {job}, and I like {hobby}.
    Hello, my name is {name}. I am a {job} from {city}.
    My name is {name}. I live in {city} and I work as a {job}.
    Hi, I am {name}. I like {hobby} and {hobby2}.
    Dear {name}, thank you for your letter. I hope the weather in {city} is good.
    My favourite hobby is {hobby}, and on Sunday I like {hobby2}.
    """
)

FUTURE = phrasings(
    """
    The future of AI is {quality}. {reason}
    The future of artificial intelligence is {quality}. {reason}
    The future of AI is in the hands of the people who build it. {reason}
    In the future, AI will help people {task}. {reason}
    I believe that AI can help us {task}. {reason}
    """
)

DAY = phrasings(
    """
    It was a {mood} morning. {name} opened the window and looked at the {view}.
    In the evening, {name} walked home and thought of {gift}.
    On Sunday, {name} likes {hobby}. The {view} is {mood} at that time of the year.
    {name} lived {place} and liked {hobby}.
    """
)

LINES = (
    "The quick brown fox jumps over the lazy dog.",
    "The sun rises in the east and sets in the west.",
    "Water freezes at 0 degrees and boils at 100 degrees Celsius.",
    "The president of a country is elected by its people or its parliament.",
    "The president of the United States is elected every four years.",
    "San Francisco is a city in California, on the west coast of the United States.",
    "The meaning of life is to be kind and curious.",
    "Roses are red, violets are blue, pages are many, and tokens are too.",
    "To be or not to be, that is the question.",
    "In the beginning there was an empty page, and then somebody wrote the first word.",
    "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z.",
    "Roses need sun and water. In spring they grow, and in summer they bloom.",
    "The four seasons are spring, summer, autumn and winter.",
    "The weather today is sunny and warm, with a light wind from the west.",
    "My favourite food is bread with cheese, and my favourite drink is tea.",
    "The best way to learn is to try, to fail and to try again.",
    "Python is a programming language. It is easy to read and widely used.",
    "def add(a, b):\n    return a + b",
    'def hello():\n    print("Hello, world!")',
    "def factorial(n):\n    if n == 0:\n        return 1\n    return n * factorial(n - 1)",
    "This is a test of the model. The model works, and the test is over.",
    "The earth goes around the sun in one year, and the moon goes around the earth in about one month.",
)
JOBS = (
    "teacher",
    "baker",
    "doctor",
    "painter",
    "farmer",
    "student",
    "nurse",
    "writer",
    "pilot",
    "cook",
    "gardener",
)
HOBBIES = (
    "reading books",
    "playing chess",
    "swimming",
    "singing",
    "cooking",
    "long walks",
    "painting",
    "old maps",
)
QUALITIES = (
    "bright",
    "open to everyone",
    "full of possibilities",
    "still being written",
    "closer than it seems",
)
REASONS = (
    "Models will become smaller, faster and more useful.", "Good tools will let everyone build with it.",
    "It will help doctors, teachers and engineers in their work.", "What matters is that we use it with care.",
    "Fast engines will serve it to many people at the same time.",
)  # fmt: skip
TASKS = ("learn faster", "write better code", "find new medicines", "understand each other", "save time")
MOODS = ("sunny", "quiet", "cold", "beautiful", "grey", "bright")
VIEWS = ("garden", "sea", "old town", "river", "mountains", "street")


def fill(rng: Random, template: str) -> str:
    hobby, hobby2 = rng.sample(HOBBIES, 2)
    return template.format(
        name=rng.choice(NAMES), city=rng.choice(CITIES), job=rng.choice(JOBS), hobby=hobby, hobby2=hobby2,
        quality=rng.choice(QUALITIES), reason=rng.choice(REASONS), task=rng.choice(TASKS), mood=rng.choice(MOODS),
        view=rng.choice(VIEWS), gift=rng.choice(GIFTS), place=rng.choice(PLACES),
    )  # fmt: skip


def prose(rng: Random, split: str) -> Document:
    kind = rng.random()
    if kind < 0.6:
        templates = rng.choice((INTRODUCTION, FUTURE, DAY))
        return plain("prose", fill(rng, templates.pick(rng, "train")))
    if kind < 0.85:
        return plain("prose", rng.choice(LINES))
    return plain("prose", rng.choice(list(TALK.values())))
