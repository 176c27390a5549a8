"""`AsyncLLMEngine` inside an asyncio program: three streams at once."""

import asyncio

from quire import AsyncLLMEngine, EngineArgs, SamplingParams


async def tell(engine: AsyncLLMEngine, prompt: str) -> None:
    text = ""
    async for output in engine.generate(prompt, SamplingParams(temperature=0, max_tokens=32), request_id=prompt):
        text = output.outputs[0].text
    print(f"{prompt!r} -> {text!r}")


async def main() -> None:
    engine = AsyncLLMEngine.from_engine_args(EngineArgs())
    await asyncio.gather(*(tell(engine, p) for p in ("The capital of Japan is", "1, 2, 3,", "Hello, my name is")))
    await engine.shutdown()


asyncio.run(main())
