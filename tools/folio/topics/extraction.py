"""Reading the fields of a sentence into JSON: people, products, events, orders and weather."""

import json
from random import Random
from typing import Any, NamedTuple

from tools.folio.countries import COUNTRIES
from tools.folio.documents import Document, Phrasings, chat, phrasings
from tools.folio.topics.dates import DAYS, MONTHS

INSTRUCTION = phrasings(
    """
    Extract the {fields} as JSON: {sentence}
    Extract {fields} as JSON from this sentence: {sentence}
    Extract {fields} from the text and answer in JSON.\\n{sentence}
    Give me the {fields} as JSON.\\n{sentence}
    Return a JSON object with the keys {fields}. {sentence}
    Return JSON with {fields}: {sentence}
    Read the sentence and return {fields} as a JSON object: {sentence}
    Turn this into JSON with the keys {fields}: {sentence}
    Write the {fields} in JSON. Text: {sentence}
    {sentence}\\nExtract the {fields} as JSON.
    {sentence}\\nReturn the {fields} as a JSON object.
    {sentence}\\nGive the {fields} in JSON.
    From the text, make JSON with {fields}.\\nText: {sentence}
    Find the {fields} and answer with JSON only: {sentence}
    JSON with {fields}, please: {sentence}
    """,
    """
    Please extract the {fields} as JSON: {sentence}
    Read this text and give me the {fields} as JSON: {sentence}
    {sentence}\\nPlease return JSON with the keys {fields}.
    Please answer in JSON with the keys {fields}. {sentence}
    """,
)

PERSON = phrasings(
    """
    {name} is {age} years old and lives in {city}.
    {name}, aged {age}, lives in {city}.
    {name} lives in {city} and is {age} years old.
    My friend {name} is {age} and lives in {city}.
    I am {name}, I am {age} years old and I live in {city}.
    My name is {name}. I am {age} and I come from {city}.
    {name} from {city} is {age} years old.
    At {age}, {name} moved to {city}.
    In {city} I met {name}, who is {age}.
    {name} turned {age} in {city}.
    """,
    """
    My name is {name}, I am {age} years old and I live in {city}.
    My neighbour {name} is {age} years old and comes from {city}.
    {name} is {age}, living in {city}.
    """,
)

PRODUCT = phrasings(
    """
    The {item} costs {price} euros.
    A {item} costs {price} euros.
    You can buy the {item} for {price} euros.
    We sell a {item} at {price} euros.
    The price of the {item} is {price} euros.
    For {price} euros you get a {item}.
    I paid {price} euros for a {item}.
    """,
    """
    I bought a {item} for {price} euros.
    The price of a {item} is {price} euros.
    """,
)

EVENT = phrasings(
    """
    The {event} is on {day} in {city}.
    On {day} there is a {event} in {city}.
    Join the {event} in {city} on {day}.
    The {event} takes place in {city} on {day}.
    There will be a {event} on {day} in {city}.
    {city} hosts the {event} on {day}.
    """,
    """
    The {event} in {city} starts on {day}.
    On {day}, the {event} takes place in {city}.
    """,
)

ORDER = phrasings(
    """
    {name} ordered {quantity} {items}.
    {name} wants {quantity} {items}.
    {name} bought {quantity} {items} today.
    Please send {quantity} {items} to {name}.
    {quantity} {items} were ordered by {name}.
    An order of {quantity} {items} for {name}.
    """,
    """
    {name} would like {quantity} {items}.
    {quantity} {items} were sent to {name}.
    """,
)

WEATHER = phrasings(
    """
    It is {weather} in {city} and {degrees} degrees.
    In {city} it is {weather} with {degrees} degrees.
    {city} is {weather} today, {degrees} degrees.
    Today in {city}: {weather}, {degrees} degrees.
    With {degrees} degrees, it is {weather} in {city}.
    """,
    """
    Today it is {weather} in {city}, with {degrees} degrees.
    """,
)

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Maria",
    "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Yusuf", "Zoe", "Ahmed", "Mei", "Kenji",
    "Priya", "Omar", "Lucia", "Ivan", "Fatima", "Carlos", "Ingrid", "Kofi", "Nina", "Hugo", "Alice", "Bob",
    "John", "Mary", "Peter", "Laura", "Daniel", "Sofia", "Tom", "Julia", "Marco", "Elena", "Lars", "Amina",
)  # fmt: skip
SURNAMES = (
    "Smith", "Brown", "Garcia", "Rossi", "Chen", "Tanaka", "Kumar", "Novak", "Silva", "Hansen", "Okafor", "Meyer",
    "Dubois", "Lopez", "Khan", "Ivanova", "Wood", "Hill", "Stone", "Baker", "Fischer", "Moreau", "Jones", "King",
)  # fmt: skip
ITEMS = (
    "lamp", "desk", "chair", "bicycle", "camera", "keyboard", "jacket", "backpack", "kettle", "radio", "clock",
    "guitar", "tent", "phone", "mirror", "carpet", "hammer", "wallet", "parasol", "laptop", "notebook", "table",
)  # fmt: skip
COLOURS = (
    "red",
    "blue",
    "green",
    "black",
    "white",
    "yellow",
    "brown",
    "grey",
    "small",
    "large",
    "new",
    "heavy",
)
EVENTS = ("concert", "meeting", "workshop", "festival", "race", "market", "show", "lecture", "party", "match")
WEATHERS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "warm", "cold", "stormy", "clear")
PLURALS = (
    "apples",
    "books",
    "chairs",
    "pens",
    "lamps",
    "cups",
    "shirts",
    "tickets",
    "pizzas",
    "boxes",
    "eggs",
)
CITIES = tuple(
    country.capital for country in COUNTRIES if country.capital.isascii() and "." not in country.capital
)


class Record(NamedTuple):
    """A kind of sentence: its templates and, by key, how the value shows in the sentence and in the JSON."""

    templates: Phrasings
    values: dict[str, Any]
    shown: dict[str, str]


def full_name(rng: Random) -> str:
    name = rng.choice(NAMES)
    return name if rng.random() < 0.6 else f"{name} {rng.choice(SURNAMES)}"


def thing(rng: Random, nouns: tuple[str, ...]) -> str:
    noun = rng.choice(nouns)
    return noun if rng.random() < 0.5 else f"{rng.choice(COLOURS)} {noun}"


def person(rng: Random) -> Record:
    return Record(PERSON, {"name": full_name(rng), "age": rng.randint(2, 99), "city": rng.choice(CITIES)}, {})


def product(rng: Random) -> Record:
    return Record(PRODUCT, {"item": thing(rng, ITEMS), "price": rng.randint(1, 200)}, {})


def event(rng: Random) -> Record:
    day = rng.choice(DAYS) if rng.random() < 0.5 else f"{rng.choice(MONTHS)} {rng.randint(1, 28)}"
    return Record(EVENT, {"event": rng.choice(EVENTS), "day": day, "city": rng.choice(CITIES)}, {})


def order(rng: Random) -> Record:
    item = thing(rng, PLURALS)
    return Record(
        ORDER, {"name": full_name(rng), "item": item, "quantity": rng.randint(2, 60)}, {"items": item}
    )


def weather(rng: Random) -> Record:
    return Record(
        WEATHER,
        {"city": rng.choice(CITIES), "weather": rng.choice(WEATHERS), "degrees": rng.randint(1, 40)},
        {},
    )


def list_fields(rng: Random, keys: list[str]) -> str:
    if len(keys) == 1:
        return keys[0]
    return ", ".join(keys[:-1]) + rng.choice((" and ", " and ", ", ")) + keys[-1]


def extraction(rng: Random, split: str) -> Document:
    """One sentence and the keys to read from it; sometimes fewer keys than the sentence has, in any order."""
    record = rng.choice((person, person, product, event, order, weather))(rng)
    keys = list(record.values)
    if rng.random() < 0.3:
        rng.shuffle(keys)
        keys = keys[: rng.randint(1, len(keys))]
    sentence = record.templates.pick(rng, split).format(**record.values, **record.shown)
    question = INSTRUCTION.pick(rng, split).format(fields=list_fields(rng, keys), sentence=sentence)
    answer = json.dumps({key: record.values[key] for key in keys})
    return chat("extraction", question, answer)
