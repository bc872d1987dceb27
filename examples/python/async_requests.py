"""Many requests in one event loop, the way a server runs them.

python examples/python/async_requests.py
"""

import asyncio

import treadle
from treadle.generator import Generator


async def answer(generator: Generator, input_ids: list[int]) -> str:
    """Cancelling this task cancels the request in the engine."""
    text = ""
    async for outputs in generator.async_stream_infer(None, input_ids, return_text=True):
        text = outputs[0].text or ""
    return text


async def main() -> None:
    engine = treadle.Engine.from_pretrained(treadle.demo_model_path())
    generator = engine.create_instance()
    questions = [f"What is {a} + {a + 11}?" for a in range(11, 31)]
    prompts = [engine.tokenizer.encode(engine.model.get_prompt(q)) for q in questions]
    for text in await asyncio.gather(*(answer(generator, ids) for ids in prompts)):
        print(text)
    engine.close()


if __name__ == "__main__":
    asyncio.run(main())
