"""A chat whose answer is printed as it grows: python examples/chat_stream.py [MODEL]"""

import sys

from quire import LLM, SamplingParams

messages = [{"role": "user", "content": "What is the capital of France?"}]
params = SamplingParams(temperature=0, max_tokens=64)

with LLM(*sys.argv[1:2]) as llm:
    shown = 0
    for output in llm.chat(messages, params, stream=True):
        text = output.outputs[0].text
        print(text[shown:], end="", flush=True)
        shown = len(text)
    print()
