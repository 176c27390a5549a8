"""Days of the week, months and seasons: order, neighbours, lengths and lists."""

from random import Random

from tools.folio.documents import Document, chat, phrasings, plain

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth",
    "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
)  # fmt: skip

AFTER = phrasings(
    """
    What {unit} comes after {name}?
    Which {unit} comes after {name}?
    Which {unit} follows {name}?
    What is the {unit} after {name}?
    What comes after {name}?
    Name the {unit} after {name}.
    """,
    """
    Tell me which {unit} comes after {name}.
    What {unit} follows {name}?
    """,
)

BEFORE = phrasings(
    """
    What {unit} comes before {name}?
    Which {unit} comes before {name}?
    What is the {unit} before {name}?
    What comes before {name}?
    Name the {unit} before {name}.
    """,
    """
    Tell me which {unit} comes before {name}.
    """,
)

LENGTH = phrasings(
    """
    How many days are in {name}?
    How many days does {name} have?
    How long is {name}?
    How many days are there in {name}?
    """,
    """
    Tell me how many days {name} has.
    """,
)

NTH = phrasings(
    """
    What is the {nth} month of the year?
    Which month is the {nth} of the year?
    Name the {nth} month.
    Which is the {nth} month of the year?
    """,
    """
    Tell me the {nth} month of the year.
    """,
)

ALL_DAYS = phrasings(
    """
    Name the days of the week.
    List the days of the week.
    What are the days of the week?
    Tell me the days of the week.
    Which days are in a week?
    """,
    """
    Can you list the days of the week?
    """,
)

ALL_MONTHS = phrasings(
    """
    Name the months of the year.
    List the months of the year.
    What are the months of the year?
    Tell me the twelve months.
    Which months are in a year?
    """,
    """
    Can you list the months of the year?
    """,
)


def list_names(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def neighbour(rng: Random, split: str) -> Document:
    unit, names = rng.choice((("day", DAYS), ("month", MONTHS)))
    i = rng.randrange(len(names))
    after = rng.random() < 0.6
    templates, word, other = (AFTER, "after", i + 1) if after else (BEFORE, "before", i - 1)
    question = templates.pick(rng, split).format(unit=unit, name=names[i])
    return chat("neighbour", question, f"{names[other % len(names)]} comes {word} {names[i]}.")


def length(rng: Random, split: str) -> Document:
    i = rng.randrange(12)
    extra = ", or 29 in a leap year" if i == 1 else ""
    answer = f"{MONTHS[i]} has {LENGTHS[i]} days{extra}."
    return chat("length", LENGTH.pick(rng, split).format(name=MONTHS[i]), answer)


def nth_month(rng: Random, split: str) -> Document:
    i = rng.randrange(12)
    answer = f"The {ORDINALS[i]} month of the year is {MONTHS[i]}."
    return chat("nth_month", NTH.pick(rng, split).format(nth=ORDINALS[i]), answer)


def whole_list(rng: Random, split: str) -> Document:
    templates, names = rng.choice(((ALL_DAYS, DAYS), (ALL_MONTHS, MONTHS)))
    head = "The days of the week are" if names is DAYS else "The months of the year are"
    return chat("whole_list", templates.pick(rng, split), f"{head} {list_names(names)}.")


def recital(rng: Random, split: str) -> Document:
    names = rng.choice((DAYS, MONTHS))
    start = rng.choice((0, 0, 0, rng.randrange(len(names))))
    return plain("recital", ", ".join(names[start:] + names[:start]) + ".")
