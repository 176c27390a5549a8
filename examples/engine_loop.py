"""`LLMEngine` by hand: add requests, step, abort one on the way."""

from quire import EngineArgs, LLMEngine, SamplingParams

engine = LLMEngine.from_engine_args(EngineArgs())
engine.add_request("count", "1, 2, 3,", SamplingParams(temperature=0, max_tokens=24))
engine.add_request("story", "Once upon a time", SamplingParams(temperature=0, max_tokens=500))

steps = 0
while engine.has_unfinished_requests():
    for output in engine.step():
        if output.finished:
            print(output.request_id, output.outputs[0].finish_reason, repr(output.outputs[0].text))
    steps += 1
    if steps == 40:
        engine.abort_request("story")
