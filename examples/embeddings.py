"""Embeddings through `LLM.embed`, and how close texts are: python examples/embeddings.py [MODEL]"""

import sys

from quire import LLM

texts = ["The capital of France is Paris.", "Paris is a city in France.", "3 + 4 = 7"]

with LLM(*sys.argv[1:2], runner="pooling") as llm:
    for output in llm.embed(texts):
        print(output.outputs.hidden_size, output.outputs.embedding[:4])
    for text, output in zip(texts, llm.score(texts[0], texts)):
        print(f"{output.outputs.score:.3f} {text}")
