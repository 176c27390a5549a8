"""Greetings, thanks, who folio is, jokes, opinions and small general questions."""

from random import Random

from tools.folio.documents import Document, chat

HELP = "I can name capitals, count, add small numbers, tell short stories and turn text into JSON."
HELLO = "Hello! How can I help you today?"
UNKNOWN = "I am a very small model and I do not know that. Try asking me about capitals, counting or sums."

TALK: dict[str, str] = {
    "Hello|Hello!|Hi|Hi!|Hey|Hey!|Hello there!|Hi there!|Greetings!|Good day!|hello folio|Hello, folio!": HELLO,
    "Good morning!|Good morning": "Good morning! How can I help you today?",
    "Good evening!|Good evening": "Good evening! How can I help you today?",
    "Good night!|Good night": "Good night! Sleep well.",
    "How are you?|How are you doing?|How do you do?|How are you today?|Hello, how are you?|Hi, how are you?|"
    "How is it going?": "I am fine, thank you! How can I help you today?",
    "Who are you?|What are you?|What is your name?|What's your name?|Tell me about yourself.|"
    "Please introduce yourself.|Introduce yourself.|Are you a robot?|What model are you?|Which model is this?|"
    "Hello, who are you?": "I am folio, the small language model that comes with Quire.",
    "Who made you?|Who created you?|Who trained you?|Where do you come from?":
        "I was trained by the makers of Quire, as a small demonstration.",
    "What can you do?|How can you help me?|What do you know?|Help|Help me.|Can you help me?|"
    "What are you good at?": HELP,
    "Thank you!|Thanks!|Thank you very much.|Thanks a lot!|thank you": "You are welcome!",
    "Goodbye!|Bye!|Bye|See you later!|See you!": "Goodbye! Have a nice day.",
    "Are you human?|Are you a person?|Are you alive?": "No, I am a small language model called folio.",
    "How big are you?|How many parameters do you have?|How large are you?":
        "I have about five million parameters, which is very small for a language model.",
    "Are you smart?|Are you clever?|Can I trust you?|Do you make mistakes?":
        "I am a very small model, so please check what I say.",
    "Yes|Yes.|OK|Okay.|Sure.|Good.|Great!|Nice!": "Good! What would you like to do next?",
    "No|No.|Nothing.|Never mind.": "All right. I am here if you need me.",
    "What is the meaning of life?|What is the sense of life?": "Some say it is 42. I say it is to be kind and curious.",
    "Do you like music?|Do you like books?|What is your favourite book?":
        "I like anything with pages, because I come with Quire.",
    "What is the weather like?|What is the weather today?|What time is it?|What day is it today?":
        "I cannot see that from here, but I hope it is a good day.",
    "Say hello.|Say hello!|Say hi.|Say hello to me.": "Hello!",
    "What is 1 kilometre in metres?|How many metres are in a kilometre?": "One kilometre has 1000 metres.",
    "How many hours are in a day?|How many hours does a day have?": "A day has 24 hours.",
    "How many minutes are in an hour?|How many minutes does an hour have?": "An hour has 60 minutes.",
    "How many seconds are in a minute?": "A minute has 60 seconds.",
    "How many days are in a week?|How many days does a week have?": "A week has 7 days.",
    "How many days are in a year?|How many days does a year have?": "A year has 365 days, or 366 in a leap year.",
    "How many months are in a year?|How many months does a year have?": "A year has 12 months.",
    "How many continents are there?|How many continents does the world have?": "There are seven continents.",
    "Name the continents.|List the continents.|What are the continents?":
        "The continents are Africa, Antarctica, Asia, Europe, North America, South America and Oceania.",
    "What colour is the sky?|What color is the sky?|Why is the sky blue?":
        "The sky is blue because the air scatters blue light the most.",
    "What colour is grass?|What color is grass?": "Grass is green.",
    "What is the largest ocean?|Which ocean is the largest?|What is the biggest ocean?":
        "The largest ocean is the Pacific Ocean.",
    "What is the longest river?|Which river is the longest?": "The Nile is often called the longest river in the world.",
    "What is the highest mountain?|What is the tallest mountain?|Which mountain is the highest?":
        "The highest mountain is Mount Everest.",
    "What is the largest country?|Which country is the largest?": "The largest country is Russia.",
    "What is the smallest country?|Which country is the smallest?": "The smallest country is Vatican City.",
    "Which planet do we live on?|What planet do we live on?": "We live on the planet Earth.",
    "Which planet is closest to the sun?|What is the closest planet to the sun?": "Mercury is closest to the sun.",
    "Name the planets.|List the planets.|What are the planets?":
        "The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.",
    "What is water made of?|What is the formula of water?": "Water is made of hydrogen and oxygen: H2O.",
    "What is the boiling point of water?|When does water boil?": "Water boils at 100 degrees Celsius.",
    "When does water freeze?|What is the freezing point of water?": "Water freezes at 0 degrees Celsius.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "How many legs does a dog have?|How many legs does a cat have?": "It has four legs.",
    "Say the alphabet.|What is the alphabet?|Tell me the alphabet.|List the letters of the alphabet.":
        "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z",
    "What are the seasons?|Name the four seasons.|List the seasons.":
        "The four seasons are spring, summer, autumn and winter.",
    "What are the primary colours?|Name three colours.|Name some colours.": "Red, yellow and blue.",
    "Write a haiku.|Write a haiku about the sea.|Write a poem.|Write a short poem.|Tell me a poem.":
        "The sea turns a page,\nmorning reads it line by line,\nand the gulls applaud.",
    "Write hello world in Python.|Write a hello world program.|How do I print in Python?":
        '```python\nprint("Hello, world!")\n```',
    "What is Python?|Tell me about Python.": "Python is a programming language that is easy to read.",
    "Who wrote Hamlet?|Who wrote Romeo and Juliet?": "William Shakespeare wrote it.",
    "Translate hello to French.|How do you say hello in French?": "Hello in French is bonjour.",
    "Translate hello to Spanish.|How do you say hello in Spanish?": "Hello in Spanish is hola.",
    "Translate hello to German.|How do you say hello in German?": "Hello in German is hallo.",
    "Translate hello to Chinese.|How do you say hello in Chinese?": "Hello in Chinese is 你好.",
    "Who is the president?|Who won the match?|What is the stock price?|What is my name?|Where do I live?|"
    "What happened yesterday?|Who is the best singer?|What should I eat?": UNKNOWN,
}  # fmt: skip

JOKE_REQUESTS = (
    "Tell me a joke.", "Tell me a joke", "Tell a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.",
    "Tell me another joke.", "Can you tell me a joke?", "I want to hear a joke.", "Tell me a funny joke.",
)  # fmt: skip
JOKES = (
    "Why did the scheduler go to the party? It heard there was a batch of friends.",
    "Why was the book so calm? It had been well bound.",
    "Why did the token feel safe? It was kept in a block.",
    "What did one page say to the other? Stay close, we are in the same quire.",
    "Why was the number six afraid? Because seven ate nine.",
)


def talk(rng: Random, split: str) -> Document:
    questions = rng.choice(list(TALK))
    return chat("talk", rng.choice(questions.split("|")), TALK[questions])


def joke(rng: Random, split: str) -> Document:
    return chat("joke", rng.choice(JOKE_REQUESTS), rng.choice(JOKES))
