"""Small arithmetic: sums, differences, products, exact quotients, comparisons and one-step word problems."""

from random import Random

from tools.folio.documents import Document, chat, phrasings, plain

SUM = phrasings(
    """
    What is {a} + {b}?
    What's {a} + {b}?
    What is {a} plus {b}?
    {a} + {b}
    {a} + {b} = ?
    {a} + {b} =
    {a} plus {b}?
    How much is {a} + {b}?
    How much is {a} plus {b}?
    Add {a} and {b}.
    Calculate {a} + {b}.
    Compute {a} + {b}.
    Please add {a} and {b}.
    What is the sum of {a} and {b}?
    Find the sum of {a} and {b}.
    Tell me {a} + {b}.
    What do you get when you add {a} and {b}?
    Solve: {a} + {b}
    Can you add {a} and {b}?
    If I add {a} and {b}, what do I get?
    What does {a} plus {b} equal?
    Work out {a} + {b}.
    """,
    """
    Can you tell me what {a} + {b} is?
    Please calculate {a} + {b}.
    Give me the sum of {a} and {b}.
    What is the result of {a} + {b}?
    What does {a} + {b} equal?
    Please compute {a} plus {b}.
    """,
)

DIFFERENCE = phrasings(
    """
    What is {a} - {b}?
    What is {a} minus {b}?
    {a} - {b}
    {a} - {b} = ?
    How much is {a} - {b}?
    Subtract {b} from {a}.
    Calculate {a} - {b}.
    Take {b} away from {a}.
    Compute {a} - {b}.
    What is the difference between {a} and {b}?
    """,
    """
    How much is {a} minus {b}?
    Please calculate {a} - {b}.
    """,
)

PRODUCT = phrasings(
    """
    What is {a} * {b}?
    What is {a} times {b}?
    What is {a} x {b}?
    {a} * {b}
    {a} * {b} = ?
    Multiply {a} by {b}.
    How much is {a} times {b}?
    Calculate {a} * {b}.
    What is the product of {a} and {b}?
    """,
    """
    Please multiply {a} by {b}.
    How much is {a} * {b}?
    """,
)

QUOTIENT = phrasings(
    """
    What is {a} / {b}?
    What is {a} divided by {b}?
    Divide {a} by {b}.
    {a} / {b} = ?
    How much is {a} divided by {b}?
    """,
    """
    Please divide {a} by {b}.
    """,
)

LARGER = phrasings(
    """
    Which is larger, {a} or {b}?
    Which number is bigger, {a} or {b}?
    Is {a} or {b} larger?
    What is the larger of {a} and {b}?
    """,
    """
    Which number is larger, {a} or {b}?
    """,
)

GAIN = phrasings(
    """
    {name} has {a} {things} and gets {b} more. How many {things} does {name} have?
    {name} has {a} {things}. {name} buys {b} more. How many {things} does {name} have now?
    {name} had {a} {things} and found {b} more. How many {things} does {name} have now?
    There are {a} {things} in a box. {name} adds {b} more. How many {things} are there?
    {name} picks {a} {things} and then {b} more. How many {things} is that?
    """,
    """
    {name} has {a} {things} and buys {b} more. How many {things} does {name} have now?
    """,
)

LOSS = phrasings(
    """
    {name} has {a} {things} and gives away {b}. How many {things} are left?
    {name} had {a} {things} and lost {b}. How many {things} are left?
    {name} has {a} {things}. {name} eats {b}. How many {things} are left?
    There are {a} {things} in a box. {name} takes {b}. How many {things} are left?
    """,
    """
    {name} has {a} {things} and loses {b}. How many {things} are left?
    """,
)

NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Sara", "Max", "Lily", "Sam", "Emma", "Noah", "Zoe")
THINGS = ("apples", "books", "coins", "pens", "stones", "cards", "eggs", "pears", "stars", "shells")


def small_pair(rng: Random) -> tuple[int, int]:
    """Two numbers whose sum is at most 20, or, one time in eight, both up to 20."""
    if rng.random() < 0.125:
        return rng.randint(0, 20), rng.randint(0, 20)
    total = rng.randint(0, 20)
    a = rng.randint(0, total)
    return a, total - a


def sum_of(rng: Random, split: str) -> Document:
    a, b = small_pair(rng)
    return chat("sum", SUM.pick(rng, split).format(a=a, b=b), f"{a} + {b} = {a + b}")


def difference(rng: Random, split: str) -> Document:
    b, rest = small_pair(rng)
    a = b + rest
    return chat("difference", DIFFERENCE.pick(rng, split).format(a=a, b=b), f"{a} - {b} = {rest}")


def product(rng: Random, split: str) -> Document:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return chat("product", PRODUCT.pick(rng, split).format(a=a, b=b), f"{a} * {b} = {a * b}")


def quotient(rng: Random, split: str) -> Document:
    b, q = rng.randint(1, 10), rng.randint(1, 10)
    return chat("quotient", QUOTIENT.pick(rng, split).format(a=b * q, b=b), f"{b * q} / {b} = {q}")


def larger(rng: Random, split: str) -> Document:
    a, b = rng.sample(range(101), 2)
    answer = f"{max(a, b)} is larger than {min(a, b)}."
    return chat("larger", LARGER.pick(rng, split).format(a=a, b=b), answer)


def word_problem(rng: Random, split: str) -> Document:
    a, b = small_pair(rng)
    fields = {"name": rng.choice(NAMES), "things": rng.choice(THINGS)}
    if rng.random() < 0.5:
        question, working = GAIN.pick(rng, split).format(a=a, b=b, **fields), f"{a} + {b} = {a + b}"
        answer = f"{working}, so the answer is {a + b} {fields['things']}."
    else:
        question, working = LOSS.pick(rng, split).format(a=a + b, b=b, **fields), f"{a + b} - {b} = {a}"
        answer = f"{working}, so the answer is {a} {fields['things']}."
    return chat("word_problem", question, answer)


def table(rng: Random, split: str) -> Document:
    """Plain lines of sums or products; every line is a fact to learn."""
    lines = []
    for _ in range(rng.randint(1, 6)):
        a, b = small_pair(rng)
        kind = rng.random()
        if kind < 0.6:
            lines.append(f"{a} + {b} = {a + b}")
        elif kind < 0.8:
            lines.append(f"{a + b} - {b} = {a}")
        else:
            lines.append(f"{a % 11} * {b % 11} = {(a % 11) * (b % 11)}")
    return plain("table", "\n".join(lines))
