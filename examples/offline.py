"""A batch of prompts through `LLM.generate`: python examples/offline.py [MODEL]"""

import sys

from quire import LLM, SamplingParams

prompts = ["Hello, my name is", "The capital of France is", "1, 2, 3,", "Once upon a time"]
params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=40, seed=7)

with LLM(*sys.argv[1:2]) as llm:
    for output in llm.generate(prompts, params):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")
