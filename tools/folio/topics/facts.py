"""Facts about countries in English: capitals first, then continent, language and currency."""

from random import Random

from tools.folio.countries import ALIASES, COUNTRIES, Country
from tools.folio.documents import Document, chat, phrasings, plain

CAPITAL = phrasings(
    """
    What is the capital of {country}?
    What's the capital of {country}?
    What is the capital city of {country}?
    Which city is the capital of {country}?
    Tell me the capital of {country}.
    Name the capital of {country}.
    Name the capital city of {country}.
    Can you tell me the capital of {country}?
    Can you name the capital city of {country}?
    Do you know the capital of {country}?
    Do you know what the capital of {country} is?
    Please tell me the capital city of {country}.
    The capital of {country} is what city?
    {country}'s capital is which city?
    What is {country}'s capital?
    What's {country}'s capital city?
    Capital of {country}?
    {country}: what is the capital?
    Give me the capital of {country}.
    I would like to know the capital of {country}.
    I forgot the capital of {country}. What is it?
    For {country}, what is the capital city?
    Geography question: what is the capital of {country}?
    Quiz: name the capital of {country}.
    I am travelling to {country}. What is its capital?
    Which city serves as the capital of {country}?
    Please name the city that is the capital of {country}.
    What city is the seat of government of {country}?
    Hi! What is the capital of {country}?
    Tell me something: which city is the capital of {country}?
    My teacher asked for the capital of {country}. What should I say?
    Where is the capital of {country}?
    If I visit {country}, which city is the capital?
    Write the capital of {country}.
    In {country}, which city is the capital?
    """,
    """
    Could you tell me what the capital of {country} is?
    Which city is {country}'s capital?
    Please give me the name of the capital of {country}.
    I need to know the capital city of {country}.
    Hello, do you know which city is the capital of {country}?
    What would be the capital of {country}?
    Quick question: what is the capital city of {country}?
    What is the name of the capital of {country}?
    """,
)

CAPITAL_SHORT = phrasings(
    """
    What is the capital of {country}? Answer with the name only.
    Name the capital of {country}. Just the name.
    Only the name, please: what is the capital of {country}?
    In a word, what is the capital of {country}?
    Answer with the city only: what is the capital of {country}?
    """,
    """
    Tell me the capital of {country}. Only the name, please.
    Answer with the name only: which city is the capital of {country}?
    """,
)

CAPITAL_PLAIN = phrasings(
    """
    The capital of {country} is| {capital}.
    The capital city of {country} is| {capital}.
    {country}'s capital is| {capital}.
    {capital} is the capital of| {country}.
    Q: What is the capital of {country}?\\nA:| {capital}
    Question: What is the capital of {country}?\\nAnswer:| {capital}
    {country} is a country in {continent}. Its capital is| {capital}.
    Everyone knows that the capital of {country} is| {capital}.
    In {country}, the capital city is| {capital}.
    """,
    """
    As we learned at school, the capital of {country} is| {capital}.
    The name of the capital of {country} is| {capital}.
    """,
)

COUNTRY_OF = phrasings(
    """
    {capital} is the capital of which country?
    Which country has {capital} as its capital?
    What country is {capital} the capital of?
    Name the country whose capital is {capital}.
    In which country is {capital} the capital?
    Of which country is {capital} the capital?
    The city of {capital} is the capital of what country?
    """,
    """
    Tell me which country has {capital} as its capital.
    Which country's capital is {capital}?
    """,
)

CONTINENT = phrasings(
    """
    Which continent is {country} in?
    What continent is {country} in?
    On which continent is {country}?
    Where is {country}?
    Where in the world is {country}?
    Name the continent of {country}.
    Tell me the continent {country} is in.
    Where is {country} located?
    """,
    """
    Which continent does {country} belong to?
    On what continent is {country} located?
    """,
)

LANGUAGE = phrasings(
    """
    What language is spoken in {country}?
    Which language do people speak in {country}?
    What language do people speak in {country}?
    Name a language of {country}.
    What is the main language of {country}?
    Tell me which language is spoken in {country}.
    """,
    """
    Which language is spoken in {country}?
    """,
)

CURRENCY = phrasings(
    """
    What is the currency of {country}?
    What money is used in {country}?
    Which currency does {country} use?
    What currency do people use in {country}?
    Name the currency of {country}.
    How do people pay in {country}?
    """,
    """
    Which currency is used in {country}?
    """,
)

# The countries people try first come up more often, and then all of them alike.
WELL_KNOWN = tuple(country for country in COUNTRIES if country.zh_name)
AMBIGUOUS_CAPITALS = frozenset({"Singapore", "Monaco", "San Marino", "Vatican City", "Djibouti"})


def pick_country(rng: Random) -> Country:
    return rng.choice(WELL_KNOWN if rng.random() < 0.2 else COUNTRIES)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def end(text: str) -> str:
    """Close a sentence; a name that ends in a full stop (Washington, D.C.) closes it already."""
    return text if text.endswith(".") else text + "."


def capital_answer(country: Country) -> str:
    return end(f"The capital of {country.with_article} is {country.capital}")


def ask(template: str, country: Country) -> str:
    return sentence(template.format(country=country.with_article, capital=country.capital))


def capital(rng: Random, split: str, country: Country | None = None) -> Document:
    country = country or pick_country(rng)
    name = country.with_article
    if country.name in ALIASES and rng.random() < 0.4:
        name = rng.choice(ALIASES[country.name])
    return chat("capital", sentence(CAPITAL.pick(rng, split).format(country=name)), capital_answer(country))


def capital_short(rng: Random, split: str) -> Document:
    country = pick_country(rng)
    return chat("capital_short", ask(CAPITAL_SHORT.pick(rng, split), country), country.capital)


def capital_plain(rng: Random, split: str) -> Document:
    country = pick_country(rng)
    fields = {"country": country.with_article, "capital": country.capital, "continent": country.continent}
    prompt, rest = sentence(CAPITAL_PLAIN.pick(rng, split).format(**fields)).split("|")
    text = prompt + rest.replace("..", ".")
    if rng.random() < 0.3 and text.endswith("."):
        text += f" {sentence(country.with_article)} is in {country.continent}."
    return plain("capital_plain", text, prompt)


def country_of(rng: Random, split: str) -> Document:
    country = pick_country(rng)
    while country.capital in AMBIGUOUS_CAPITALS:
        country = pick_country(rng)
    answer = f"{country.capital} is the capital of {country.with_article}."
    return chat("country_of", ask(COUNTRY_OF.pick(rng, split), country), answer)


def continent(rng: Random, split: str) -> Document:
    country = pick_country(rng)
    answer = f"{sentence(country.with_article)} is in {country.continent}."
    return chat("continent", ask(CONTINENT.pick(rng, split), country), answer)


def language(rng: Random, split: str) -> Document:
    country = rng.choice(WELL_KNOWN)
    answer = f"People in {country.with_article} speak {country.language}."
    return chat("language", ask(LANGUAGE.pick(rng, split), country), answer)


def currency(rng: Random, split: str) -> Document:
    country = rng.choice(WELL_KNOWN)
    answer = f"The currency of {country.with_article} is the {country.currency}."
    return chat("currency", ask(CURRENCY.pick(rng, split), country), answer)
