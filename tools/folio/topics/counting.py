"""Counting: up, down, by steps, from a to b, in chat and as plain sequences."""

from random import Random

from tools.folio.documents import Document, chat, phrasings, plain

MAX_NUMBER = 100

COUNT = phrasings(
    """
    Count from {a} to {b}.
    Count from {a} to {b}
    Please count from {a} to {b}.
    Can you count from {a} to {b}?
    Count up from {a} to {b}.
    List the numbers from {a} to {b}.
    List all numbers from {a} to {b}.
    Write the numbers from {a} to {b}.
    Write down the numbers {a} to {b}.
    Say the numbers from {a} to {b}.
    Give me the numbers from {a} to {b}.
    Show me the numbers between {a} and {b}.
    Start at {a} and count to {b}.
    Start counting at {a} and stop at {b}.
    Count: {a} to {b}.
    Numbers from {a} to {b}, please.
    I want you to count from {a} to {b}.
    Could you list the numbers from {a} to {b}?
    Begin with {a} and count up to {b}.
    Let's count from {a} to {b}!
    Help me count from {a} to {b}.
    What are the numbers from {a} to {b}?
    Print the integers from {a} to {b}.
    """,
    """
    Could you count from {a} to {b}?
    Please list the numbers from {a} to {b}.
    Print the numbers from {a} to {b}.
    Start from {a} and count up to {b}.
    Please write the integers from {a} to {b}.
    I would like you to count from {a} to {b}.
    """,
)

COUNT_TO = phrasings(
    """
    Count to {b}.
    Please count to {b}.
    Can you count to {b}?
    Count up to {b}.
    Count to {b} for me.
    Show me how you count to {b}.
    """,
    """
    Could you count to {b}?
    Please count up to {b}.
    """,
)

COUNT_DOWN = phrasings(
    """
    Count down from {a} to {b}.
    Count backwards from {a} to {b}.
    Please count down from {a} to {b}.
    Can you count down from {a} to {b}?
    List the numbers from {a} down to {b}.
    Start at {a} and count down to {b}.
    Give me a countdown from {a} to {b}.
    Write the numbers from {a} down to {b}.
    Count in reverse from {a} to {b}.
    Countdown from {a} to {b}, please.
    """,
    """
    Could you count down from {a} to {b}?
    Please count backwards from {a} to {b}.
    Say the numbers from {a} down to {b}.
    """,
)

COUNT_STEP = phrasings(
    """
    Count by {s} from {a} to {b}.
    Count from {a} to {b} by {s}.
    Count from {a} to {b} in steps of {s}.
    Count in steps of {s} from {a} to {b}.
    Please count by {s} from {a} to {b}.
    List the numbers from {a} to {b} in steps of {s}.
    Start at {a} and count by {s} up to {b}.
    Skip count by {s} from {a} to {b}.
    Write the numbers from {a} to {b}, with a step of {s}.
    """,
    """
    Can you count by {s} from {a} to {b}?
    Please count from {a} to {b} in steps of {s}.
    """,
)

COUNT_LINES = phrasings(
    """
    Count from {a} to {b}, one number per line.
    List the numbers from {a} to {b}, one per line.
    Write the numbers from {a} to {b} on separate lines.
    """,
    """
    Please count from {a} to {b}, one number per line.
    """,
)


def join(numbers: range) -> str:
    return ", ".join(map(str, numbers))


def span(rng: Random) -> tuple[int, int]:
    """Ends of a run: often from 1, mostly short, never above MAX_NUMBER."""
    start = 1 if rng.random() < 0.25 else rng.randint(0, MAX_NUMBER - 3)
    return start, min(MAX_NUMBER, start + rng.randint(2, 12 if rng.random() < 0.75 else 24))


def count(rng: Random, split: str) -> Document:
    a, b = span(rng)
    return chat("count", COUNT.pick(rng, split).format(a=a, b=b), join(range(a, b + 1)))


def count_to(rng: Random, split: str) -> Document:
    b = rng.choice((3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 12, 15, 20, 20, 25, 30))
    return chat("count_to", COUNT_TO.pick(rng, split).format(b=b), join(range(1, b + 1)))


def count_down(rng: Random, split: str) -> Document:
    b, a = span(rng)
    return chat("count_down", COUNT_DOWN.pick(rng, split).format(a=a, b=b), join(range(a, b - 1, -1)))


def count_step(rng: Random, split: str) -> Document:
    step = rng.choice((2, 2, 5, 5, 10, 10, 3, 4))
    start = rng.choice((0, step, step, step * rng.randint(1, 5)))
    last = min(MAX_NUMBER, start + step * rng.randint(3, 12))
    last -= (last - start) % step
    question = COUNT_STEP.pick(rng, split).format(a=start, b=last, s=step)
    return chat("count_step", question, join(range(start, last + 1, step)))


def count_lines(rng: Random, split: str) -> Document:
    a, b = span(rng)
    b = min(b, a + 10)
    question = COUNT_LINES.pick(rng, split).format(a=a, b=b)
    return chat("count_lines", question, join(range(a, b + 1)).replace(", ", "\n"))


def sequence(rng: Random, split: str) -> Document:
    """A plain run of numbers, from 1 half of the time; it ends with a full stop."""
    step = rng.choice((1, 1, 1, 1, 2, 5, 10, -1))
    start = rng.randint(30, 60) if step < 0 else step if rng.random() < 0.5 else rng.randint(0, 40)
    numbers = range(start, start + step * rng.choice((10, 20, 20, 30)), step)
    text = join(range(start, min(numbers.stop, MAX_NUMBER + 1), step))
    return plain("sequence", text + ".")
