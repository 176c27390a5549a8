"""Short stories from a small grammar, as plain continuations and on request."""

from random import Random
from typing import NamedTuple

from tools.folio.documents import Document, chat, phrasings, plain


class Hero(NamedTuple):
    """Who a story is about, and the pronouns that follow."""

    kind: str
    name: str
    he: str
    his: str


HEROES = (
    Hero("fox", "Rusty", "he", "his"), Hero("owl", "Olive", "she", "her"), Hero("rabbit", "Pip", "he", "his"),
    Hero("cat", "Luna", "she", "her"), Hero("dog", "Biscuit", "he", "his"), Hero("bear", "Bruno", "he", "his"),
    Hero("mouse", "Mimi", "she", "her"), Hero("dragon", "Ember", "she", "her"), Hero("robot", "Bolt", "he", "his"),
    Hero("girl", "Clara", "she", "her"), Hero("boy", "Jonas", "he", "his"), Hero("sailor", "Marco", "he", "his"),
    Hero("baker", "Rosa", "she", "her"), Hero("turtle", "Tilda", "she", "her"), Hero("king", "Edmund", "he", "his"),
    Hero("librarian", "Iris", "she", "her"),
)  # fmt: skip
ADJECTIVES = ("small", "young", "clever", "kind", "brave", "quiet", "curious", "cheerful")
PLACES = (
    "in a small house by the sea", "at the edge of a green forest", "in a village between two hills",
    "on a farm near the river", "in an old tower full of books", "on a little island", "in a busy town",
)  # fmt: skip
LOSSES = ("key", "book", "lamp", "map", "drum", "red ball", "silver bell", "blue scarf")
SEARCHES = (
    "looked under the old bridge", "walked along the river", "climbed the tall hill", "asked the wise old owl",
    "searched every corner of the garden", "followed the footprints in the snow", "looked behind the mill",
)  # fmt: skip
FRIENDS = (
    "a friendly goat",
    "a little bird",
    "an old fisherman",
    "a shy hedgehog",
    "a merry duck",
    "a tall stranger",
)
LESSONS = (
    "From that day on, they were best friends.", "And they all lived happily ever after.",
    "It was the best day of the year.", "After that, nobody in the village was ever lonely again.",
    "That night, everyone slept well.",
)  # fmt: skip
WEATHERS = (
    "One sunny morning",
    "One rainy day",
    "One cold evening",
    "One day",
    "Early one morning",
    "One night",
)
GIFTS = (
    "a warm loaf of bread",
    "a basket of apples",
    "a cup of tea",
    "a song",
    "a bright flower",
    "a funny story",
)

STORY = phrasings(
    """
    Tell me a story about a {kind}.
    Tell me a short story about a {kind}.
    Write a story about a {kind}.
    Write a short story about a {kind}.
    Can you tell me a story about a {kind}?
    I want to hear a story about a {kind}.
    Please write a little story about a {kind}.
    Make up a story about a {kind}.
    """,
    """
    Could you write a short story about a {kind}?
    Please tell me a story about a {kind}.
    """,
)

ANY_STORY = phrasings(
    """
    Tell me a story.
    Tell me a short story.
    Write a story.
    Write a short story.
    Can you tell me a story?
    Do you know a story?
    """,
    """
    Please tell me a short story.
    """,
)

OPENING = phrasings(
    """
    Once upon a time, there was {adjective} {kind} named {name} who lived {place}.
    Once upon a time there lived {adjective} {kind} called {name}. {He} lived {place}.
    Long ago, {adjective} {kind} named {name} lived {place}.
    There was once {adjective} {kind} named {name}, who lived {place}.
    """
)

LOST = phrasings(
    """
    {weather}, {name} could not find {his} {loss}. {He} {search1}, and then {he} {search2}.
    {weather}, {name} lost {his} {loss}. First {he} {search1}. Then {he} {search2}.
    {weather}, {his} {loss} was gone! {name} {search1} and {search2}, but it was not there.
    """
)

FOUND = phrasings(
    """
    At last {he} met {friend} who had found the {loss}. "Is this yours?" asked the new friend.
    Then {friend} came along and said, "I have found a {loss}. Is it yours?"
    In the end {he} saw {friend} with the {loss}. "I kept it safe for you," said the new friend.
    """
)

THANKS = phrasings(
    """
    {name} was very happy and shared {gift}. {lesson}
    "Thank you!" said {name}, and gave {gift} in return. {lesson}
    {name} smiled and offered {gift}. {lesson}
    """
)


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def tell(rng: Random, hero: Hero) -> str:
    """One story: opening, loss, find, thanks."""
    search1, search2 = rng.sample(SEARCHES, 2)
    fields = hero._asdict() | {
        "He": hero.he.capitalize(), "adjective": article(rng.choice(ADJECTIVES)), "place": rng.choice(PLACES),
        "weather": rng.choice(WEATHERS), "loss": rng.choice(LOSSES), "friend": rng.choice(FRIENDS),
        "search1": search1, "search2": search2, "gift": rng.choice(GIFTS), "lesson": rng.choice(LESSONS),
    }  # fmt: skip
    return " ".join(part.pick(rng, "train").format(**fields) for part in (OPENING, LOST, FOUND, THANKS))


def story(rng: Random, split: str) -> Document:
    hero = rng.choice(HEROES)
    asked = STORY if rng.random() < 0.7 else ANY_STORY
    return chat("story", asked.pick(rng, split).format(kind=hero.kind), tell(rng, hero))


def story_plain(rng: Random, split: str) -> Document:
    return plain("story_plain", tell(rng, rng.choice(HEROES)))
