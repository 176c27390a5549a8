"""Questions about Quire and the words of LLM serving, each with one answer."""

from random import Random

from tools.folio.documents import Document, chat, phrasings, plain

EXPLAIN = phrasings(
    """
    What is {term}?
    What's {term}?
    Explain {term}.
    Explain {term} in one sentence.
    Can you explain {term}?
    What does {term} mean?
    Please explain {term}.
    Tell me about {term}.
    Define {term}.
    What do you know about {term}?
    How would you describe {term}?
    {term}?
    """,
    """
    Could you explain {term}?
    Please tell me what {term} is.
    Can you tell me about {term}?
    """,
)

TERMS: dict[str, str] = {
    "Quire": "Quire is an engine that serves large language models fast, with PagedAttention and continuous batching.",
    "PagedAttention": "PagedAttention keeps the KV cache in small blocks, so that memory is shared and hardly wasted.",
    "continuous batching": "Continuous batching lets requests join and leave the batch at every step, so nobody waits.",
    "prefix caching": "Prefix caching keeps the blocks of a prompt, so the next prompt with the same start is faster.",
    "chunked prefill": "Chunked prefill splits a long prompt over several steps, so other requests keep moving.",
    "speculative decoding": "In speculative decoding a small draft model guesses tokens and the large model checks them.",
    "a draft model": "A draft model is a small model that guesses the next tokens for a larger one.",
    "quantization": "Quantization stores the weights with fewer bits, so a model needs less memory and runs faster.",
    "the KV cache": "The KV cache keeps the keys and values of earlier tokens, so they are not computed again.",
    "a block table": "A block table lists the blocks that hold the KV cache of one request.",
    "a token": "A token is a piece of text, such as a word or a part of a word, that a model reads as one number.",
    "a tokenizer": "A tokenizer turns text into tokens and tokens back into text.",
    "the scheduler": "The scheduler decides at every step which requests get how many tokens computed.",
    "preemption": "Preemption takes the blocks of one request when memory runs out, and resumes it later.",
    "TTFT": "TTFT is the time to first token: how long a user waits before the answer starts.",
    "ITL": "ITL is the inter-token latency: the time between two tokens of an answer.",
    "throughput": "Throughput is the number of tokens or requests that an engine finishes per second.",
    "goodput": "Goodput is the number of requests per second that meet their latency targets.",
    "a LoRA adapter": "A LoRA adapter is a small set of weights that changes what a model does without a full copy.",
    "tensor parallelism": "Tensor parallelism splits every layer over several devices.",
    "pipeline parallelism": "Pipeline parallelism gives each device some of the layers of a model.",
    "data parallelism": "Data parallelism runs copies of a model and shares the requests between them.",
    "expert parallelism": "Expert parallelism spreads the experts of a model over several devices.",
    "temperature": "Temperature sets how random sampling is: zero always takes the most likely token.",
    "greedy decoding": "Greedy decoding always takes the most likely next token.",
    "top-p sampling": "Top-p sampling picks from the smallest set of tokens whose probabilities add up to p.",
    "a logprob": "A logprob is the logarithm of the probability that a model gives to a token.",
    "a stop string": "A stop string ends the answer as soon as it appears in the text.",
    "streaming": "Streaming sends each token to the user as soon as it is ready.",
    "a large language model": "A large language model is a neural network that predicts the next token of a text.",
    "a neural network": "A neural network is a function with many weights that are learned from examples.",
    "artificial intelligence": "Artificial intelligence is the art of making machines solve tasks that need thinking.",
    "machine learning": "Machine learning is a way to make programs that learn from examples.",
    "a transformer": "A transformer is a neural network that uses attention to relate the tokens of a text.",
    "attention": "Attention lets each token look at the earlier tokens and take what it needs from them.",
    "a GPU": "A GPU is a processor that does many small calculations at the same time.",
    "structured output": "Structured output makes a model follow a format, such as a JSON schema.",
    "a quire": "A quire is a gathering of pages, and also the name of this engine.",
    "folio": "folio is the small model that comes with Quire, for demonstrations and tests.",
}  # fmt: skip

QUESTIONS: dict[str, str] = {
    "How do I start Quire?|How do I start the server?|How can I run Quire?|How do I serve a model?":
        "Run `quire serve` with the name of a model, and the server starts.",
    "Which API does Quire speak?|Is Quire compatible with OpenAI clients?|Does Quire have an OpenAI API?":
        "Quire has an OpenAI-compatible server, so existing clients work.",
    "What does Quire promise?|What are the promises of Quire?|What makes Quire special?":
        "Quire promises that the same request gives the same tokens, and that nothing accepted is lost.",
    "Is Quire deterministic?|Does Quire give the same answer every time?|Are results reproducible with Quire?":
        "Yes. In Quire the same request gives the same tokens, whatever else is in the batch.",
    "Why is it called Quire?|Where does the name Quire come from?|What does the name Quire mean?":
        "A quire is a gathering of pages, and Quire keeps its memory in pages.",
    "Can I use Quire from Python?|Does Quire have a Python API?|How do I use Quire in Python?":
        "Yes. Import `LLM` from `quire` and call `generate` or `chat`.",
    "Does Quire run on a CPU?|Can I use Quire without a GPU?|Do I need a GPU for Quire?":
        "Quire runs on a CPU as well as on a GPU.",
    "What is the block size of Quire?|How large is a block in Quire?|How many tokens are in a block?":
        "A block holds 16 tokens by default.",
    "Does Quire support LoRA?|Can Quire serve many adapters?|Can I use LoRA adapters with Quire?":
        "Yes. Quire can serve many LoRA adapters at the same time.",
    "What language is Quire written in?|In which language is Quire written?|How is Quire built?":
        "Quire is written in Python, with fast kernels in C++ and Triton.",
    "Does speculation change the output?|Is speculative decoding safe?|Does a draft model change the answer?":
        "No. In Quire speculation changes the speed, never the output.",
    "What happens when memory runs out?|What if there are no free blocks?|What does Quire do without free blocks?":
        "The last request in line is preempted and resumed later, so it still finishes.",
    "How can I make Quire faster?|How do I speed up Quire?|How do I get more tokens per second?":
        "Use quantized weights, prefix caching and speculative decoding.",
}  # fmt: skip

LINES = (
    "Quire is an engine for large language models. It keeps the KV cache in blocks and batches requests continuously.",
    "PagedAttention stores the KV cache in blocks of 16 tokens. Blocks with the same content are shared.",
    "The scheduler of Quire is simple: every request wants some tokens computed, and gets some of them at each step.",
    "A request enters the server, becomes tokens, waits in the queue, runs in a batch and leaves as text.",
    "Large language models predict the next token. Serving them well means keeping memory full and users happy.",
)


def explain(rng: Random, split: str) -> Document:
    term = rng.choice(list(TERMS))
    question = EXPLAIN.pick(rng, split).format(term=term)
    return chat("explain", question[0].upper() + question[1:], TERMS[term])


def question(rng: Random, split: str) -> Document:
    questions = rng.choice(list(QUESTIONS))
    return chat("quire", rng.choice(questions.split("|")), QUESTIONS[questions])


def line(rng: Random, split: str) -> Document:
    return plain("quire_line", rng.choice(LINES if rng.random() < 0.4 else list(TERMS.values())))
