"""A streamed conversation in one session with the bundled model; what `make demo` runs.

    python examples/python/demo.py

The second question is sent alone: the engine has kept the first one and its answer.
"""

from __future__ import annotations

import treadle

QUESTIONS = ["浙江的省会在哪?", "这有什么好吃的"]
SESSION = 1


def main() -> None:
    engine = treadle.Engine.from_pretrained(treadle.demo_model_path())
    generator = engine.create_instance()
    greedy = treadle.GenerationConfig(do_sample=False, max_new_tokens=64)

    for turn, question in enumerate(QUESTIONS):
        first = turn == 0
        prompt = engine.model.get_prompt(question, sequence_start=first)
        input_ids = engine.tokenizer.encode(prompt, continuation=not first)

        print(f"user> {question}")
        print("assistant> ", end="", flush=True)
        for outputs in generator.stream_infer(SESSION, [input_ids], greedy, return_text=True):
            print(outputs[0].new_text, end="", flush=True)
        usage = outputs[0].usage
        print(f"\n    [{len(input_ids)} ids sent, {usage.prompt_tokens} in the session's prompt]\n")

    engine.end_session(SESSION)
    engine.close()


if __name__ == "__main__":
    main()
